"""tools/engine/config.py: YAML, overrides, and the tools' own settings."""

import os
import pathlib

import pytest

from engine.config import load_config
from engine.errors import UserError
from engine.keys import RUNNER_KEYS, check_unknown_keys, read_settings

BASE = {
    "runner.train_data_dir": "data",
    "runner.train_batch_size": 2,
    "runner.epochs": 1,
    "runner.print_interval": 1,
    "config_abs_dir": "/package",
}


def load(tmp_path, text, *overrides):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(str(path), overrides)


def test_sections_become_dotted_keys_and_other_sections_are_ignored(tmp_path, caplog):
    text = """
workspace: here
runner: {epochs: 3, files: [a, b]}
hyper_parameters: {optimizer: {learning_rate: 1e-3, class: Adam}, size: 5}
phase: [{name: one, model: x}]
wroom: {x: 1}
"""
    config = load(tmp_path, text)
    assert config == {
        "workspace": "here",
        "runner.epochs": 3,
        "runner.files": ["a", "b"],
        "hyper_parameters.optimizer.learning_rate": 0.001,
        "hyper_parameters.optimizer.class": "Adam",
        "hyper_parameters.size": 5,
        "config_abs_dir": str(tmp_path),
        "yaml_path": str(tmp_path / "config.yaml"),
    }
    assert "wroom" in caplog.text


def test_a_list_of_named_mappings_is_flattened(tmp_path):
    config = load(tmp_path, "runner: [{name: train, epochs: 3}, {name: infer, n: 1}]")
    assert config["runner.train.epochs"] == 3 and config["runner.infer.n"] == 1
    with pytest.raises(UserError, match="name"):
        load(tmp_path, "runner: [{epochs: 3}]")


@pytest.mark.parametrize(
    "text,words",
    [
        *[
            (text, "config.yaml")
            for text in ("", "- 1\n- 2", "just text", "a: [", "a: b: c", "x: !!python/object:os.system {}")
        ],
        ("runner: {epochs: 1}\nrunner: {epochs: 2}", "runner is given twice"),
        ("runner:\n  epochs: 1\n  epochs: 1", "epochs is given twice"),
        ("runner: &r {again: *r}", "YAML"),
        ("runner: &r {again: [*r]}", "YAML"),
        ("a: " + "[" * 5000 + "]" * 5000, "YAML"),
        ("a: 2026-99-99", "YAML"),
        ("? [1, 2]\n: 3", "key"),
        (f"a: &a [{'1, ' * 1000}]\nb: [{'*a, ' * 100}]", "larger than 100000"),
        (f"a: &a {{{', '.join(f'k{i}: 1' for i in range(1000))}}}\nb: {{<<: [{'*a, ' * 50}]}}", "larger than 100000"),
    ],
)
def test_what_is_no_config_or_misleads_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path, text)
    assert "config.yaml" in str(caught.value) and len(str(caught.value)) < 2000


def test_merge_keys_are_read_as_paddlerec_reads_them(tmp_path):
    config = load(tmp_path, "hyper_parameters: &h {a: 1, b: 2}\nrunner: {<<: *h, b: 3}")
    assert config["runner.a"] == 1 and config["runner.b"] == 3


def test_an_override_without_a_section_is_kept_with_a_warning(tmp_path, caplog):
    assert load(tmp_path, "runner: {epochs: 1}", "epochs=3")["epochs"] == 3
    assert "-o epochs=3" in caplog.text and "Did you mean runner.epochs?" in caplog.text


@pytest.mark.parametrize(
    "override,words", [("epochs=3", "Did you mean runner.epochs?"), ("gate=x", "hyper_parameters")]
)
def test_an_override_without_a_section_is_refused_under_strict(tmp_path, override, words):
    with pytest.raises(UserError, match=f"-o {override}: ") as refused:
        load(tmp_path, "{runner: {epochs: 1, strict: true}, hyper_parameters: {gate: y}}", override)
    assert words in str(refused.value)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xef\xbb\xbfrunner:\r\n  epochs: 2\r\n")
    assert load_config(str(tmp_path / "config.yaml"))["runner.epochs"] == 2


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_config(str(tmp_path / "nowhere.yaml"))


YAML = """
runner: {epochs: 3, use_gpu: auto, names: [a], save: path, shuffle: false, none: null}
hyper_parameters: {rate: 0.5, size: 5, flag: true, name: x}
"""


@pytest.mark.parametrize(
    "override,key,value",
    [
        ("runner.epochs=7", "runner.epochs", 7),
        ("runner.epochs=1.0", "runner.epochs", 1.0),
        ("runner.use_gpu=False", "runner.use_gpu", False),
        ("runner.shuffle=true", "runner.shuffle", True),
        ("runner.names=[c, d]", "runner.names", ["c", "d"]),
        ("runner.model_save_path=a=b", "runner.model_save_path", "a=b"),
        ("runner.none=3", "runner.none", 3),
        ("runner.new=False", "runner.new", False),
        ("hyper_parameters.rate=1", "hyper_parameters.rate", 1.0),
        ("hyper_parameters.rate=1e-3", "hyper_parameters.rate", 0.001),
        ("hyper_parameters.size=6", "hyper_parameters.size", 6),
        ("hyper_parameters.size=0.5", "hyper_parameters.size", 0.5),
        ("hyper_parameters.flag=FALSE", "hyper_parameters.flag", False),
        ("hyper_parameters.name=3", "hyper_parameters.name", "3"),
        ("hyper_parameters.new=1e-3", "hyper_parameters.new", 0.001),
        ("auto_cast=False", "auto_cast", False),
    ],
)
def test_overrides_take_the_type_of_what_they_replace(tmp_path, override, key, value):
    result = load(tmp_path, YAML, override)[key]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    "override", ["runner.epochs", "=3", "hyper_parameters.size=x", "hyper_parameters.flag=maybe", "runner.names=[a"]
)
def test_bad_overrides_are_refused(tmp_path, override):
    with pytest.raises(UserError) as caught:
        load(tmp_path, YAML, override)
    assert f"-o {override}" in str(caught.value)


def test_defaults_and_paths():
    settings = read_settings(dict(BASE), "train")
    assert settings.train_data_dir == "/package/data"
    assert settings.model_save_path == "model_output" and settings.seed == 12345 and settings.drop_last is True
    assert settings.use_gpu == "auto" and settings.infer_drop_last is False


def test_an_unknown_key_is_a_warning_or_under_strict_an_error(caplog):
    config = {**BASE, "runner.epoch": 3}
    check_unknown_keys(config, strict=False)
    assert "runner.epoch" in caplog.text and "runner.epochs" in caplog.text
    with pytest.raises(UserError, match="runner.epochs"):
        check_unknown_keys(config, strict=True)
    check_unknown_keys(config, strict=True, declared=("epoch",))


PATHS = [name for name, key in RUNNER_KEYS.items() if key.type == "path"]


def test_a_tilde_is_home_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    lines = "".join(f"  {name}: ~/in/{name}\n" for name in PATHS)
    load(tmp_path, f"runner:\n{lines}  keep_best: ~loss\n")
    for overrides in ([], [f"runner.{name}=~/in/{name}" for name in PATHS]):
        config = load_config("~/config.yaml", overrides)
        for name in PATHS:
            assert pathlib.Path(config[f"runner.{name}"]) == tmp_path / "in" / name
    assert config["runner.keep_best"] == "~loss" and config["yaml_path"] == str(tmp_path / "config.yaml")
    assert read_settings({**BASE, **config}, "train").train_data_dir == str(tmp_path / "in" / "train_data_dir")
    assert load_config("~/config.yaml", ["runner.resume=./~/x"])["runner.resume"] == "./~/x"


@pytest.mark.skipif(os.name != "posix", reason="POSIX's users")
def test_a_tilde_and_a_name_is_another_users_home(tmp_path):
    import pwd

    root = pwd.getpwuid(0)
    config = load(tmp_path, "runner: {}", f"runner.export_path=~{root.pw_name}/m")
    assert config["runner.export_path"] == str(pathlib.Path(root.pw_dir) / "m")
    with pytest.raises(UserError, match="runner.log_json is ~nobody_here/x.*no such home.*or ./~nobody_here/x"):
        load(tmp_path, "runner: {}", "runner.log_json=~nobody_here/x")
