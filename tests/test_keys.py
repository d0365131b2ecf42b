"""Every key of the two tables, wrong in every way the table knows: code 2 and a message with the key."""

import dataclasses
import sys

import make_keys
import pytest
import yaml
from conftest import ROOT

import hyper_parameters
from engine import cli
from engine.keys import REQUIRED, RUNNER_KEYS

HYPER = dict(zip(hyper_parameters.HyperParameters.defaults(), dataclasses.fields(hyper_parameters.HyperParameters)))
RUNNER = {f"runner.{name}": key for name, key in RUNNER_KEYS.items()}


def wrong_runner_values(key):
    """What a tool's key forbids: other types, and what is out of range."""
    if key.kind is int:
        return ["x", 1.5, key.low - 1, True, [1]]
    if key.choices:
        return ["nonsense", 3, [True]]
    return {bool: ["maybe", 1], str: [[]], list: ["text", 3]}[key.kind]


def wrong_hyper_values(rule):
    """What a rule of the model forbids."""
    lists = {"numbers": [[-1], [0.0]], "sizes": [[0], [1.5], [rule["high"]] + [rule["high"] and rule["high"] + 1]]}
    lists["tasks"] = [[1]]
    if rule["kind"] in lists:
        return ["nonsense", 3, ["x"], *lists[rule["kind"]]]
    values = ["nonsense", []]
    if rule["kind"] not in (str, "name"):
        values += [True, float("nan"), float("inf"), -1]
    if rule["kind"] is int:
        values.append(rule["low"] + 0.5)
    return values + [x for x in (rule["above"], rule["high"] and rule["high"] + 1) if x is not None]


def refused(tmp_path, monkeypatch, capsys, section, name, value):
    """The message of a tool given config.yaml with one key more, or of another value."""
    content = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    for key in ("train_data_dir", "test_data_dir"):
        content["runner"][key] = str(ROOT / content["runner"][key])
    content["runner"]["tune_process"] = False
    *path, last = name.split(".")
    node = content[section]
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["trainer.py", "-m", str(tmp_path / "config.yaml")])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main("dynamic", "train")
    assert caught.value.code == 2, f"{section}.{name}: {value!r}"
    return capsys.readouterr().err.rsplit("error: ", 1)[1]


@pytest.fixture(autouse=True)
def _log_and_path(monkeypatch):
    """Each call of ``main`` adds a handler to the log and a folder to the path."""
    monkeypatch.setattr(cli, "_start_log", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("key", RUNNER)
def test_a_wrong_value_of_a_tools_key(tmp_path, monkeypatch, capsys, key):
    for value in wrong_runner_values(RUNNER[key]):
        message = refused(tmp_path, monkeypatch, capsys, *key.split(".", 1), value)
        assert f"{key} is {value!r}" in message and RUNNER[key].meaning in message


@pytest.mark.parametrize("key", HYPER)
def test_a_wrong_value_of_a_models_key(tmp_path, monkeypatch, capsys, key):
    for value in wrong_hyper_values(HYPER[key].metadata):
        message = refused(tmp_path, monkeypatch, capsys, *key.split(".", 1), value)
        assert f"{key} is {value!r}" in message and HYPER[key].metadata["meaning"] in message


@pytest.mark.parametrize("key", [*RUNNER, *HYPER])
def test_a_misspelt_key_names_the_right_one(tmp_path, monkeypatch, capsys, key):
    message = refused(tmp_path, monkeypatch, capsys, *(key[:-1] + key[-1] * 2).split(".", 1), 1)
    assert f"did you mean {key}?" in message


@pytest.mark.parametrize(
    "key", [key for key in RUNNER if RUNNER[key].default is REQUIRED and RUNNER[key].job != "infer"]
)
def test_a_required_key_without_a_value(tmp_path, monkeypatch, capsys, key):
    message = refused(tmp_path, monkeypatch, capsys, *key.split(".", 1), None)
    assert f"{key} is missing" in message and RUNNER[key].meaning in message


def test_the_documentation_is_of_these_tables():
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert page == make_keys.page(), "run: python docs/make_keys.py"
    assert all(f"| `{key}` |" in page for key in [*RUNNER, *HYPER])
