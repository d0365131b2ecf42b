"""What a run says at its end: its figures, and a command to type next, which is typed here."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from toolbox import TIMEOUT_S, run_here, run_tool, small_data

from engine import commands

KEYS = ["runner.epochs=2", "runner.print_interval=9", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=4", "hyper_parameters.expert_size=8", "runner.infer_batch_size=32"]
INFO = " - INFO - "


def told(stderr, beginning):
    """What follows ``beginning`` on the lines of the log that have it."""
    messages = [line.split(INFO, 1)[1] for line in stderr.splitlines() if INFO in line]
    return [message[len(beginning) :] for message in messages if message.startswith(beginning)]


def next_here(process, cwd):
    """Run the command that a tool has printed, within this process."""
    (command,) = told(process.stderr, "next: ")
    python, script, option, config, *rest = shlex.split(command)
    assert option == "-m" and rest[:1] in ([], ["-o"]) and python.startswith(("python", "/", "./")), command
    process = run_here(script[: -len(".py")], config, *rest[1:], cwd=cwd)
    assert process.returncode == 0, f"{command}\n{process.stderr}"
    return script, process


@pytest.mark.parametrize("graph", ["", "static_"])
def test_each_printed_command_leads_on_to_the_predictions(tmp_path, graph):
    """From a folder with a blank in its name, into another save folder than the config's, past its infer_end_epoch."""
    keys = [*KEYS, *small_data(tmp_path / "the data"), "runner.model_save_path=my saves", "runner.infer_end_epoch=1"]
    process, scripts = run_here(f"{graph}trainer", ROOT / "config.yaml", *keys, cwd=tmp_path), []
    last = told(process.stderr, "epoch: 1 done, ")[0]
    assert told(process.stderr, "trained 2 of 2 epochs; this run took ")[0].endswith(" s; saves are in my saves")
    figures = told(process.stderr, "last epoch: 1 (of the training), ")[0]
    assert figures.split(", ") == last.replace(":", "").split(", ")[:-1], "the done line's, without its time"
    while "next: " in process.stderr:
        script, process = next_here(process, tmp_path)
        scripts.append(script)
        if "infer" in script:
            assert [line[0] for line in told(process.stderr, "epoch: ") if " done, " in line] == ["0", "1"]
    assert scripts == [f"{graph}infer.py", "export.py", "predict.py"]
    assert (tmp_path / "predictions.csv").exists()


def test_the_command_works_in_a_shell(tmp_path):
    keys = [*KEYS, *small_data(tmp_path / "data"), "runner.epochs=1", "runner.model_save_path=it's saved"]
    (tmp_path / "it.yaml").write_text((ROOT / "config.yaml").read_text())
    for path in (*ROOT.glob("*.py"), ROOT / "config.yaml"):
        shutil.copy(path, tmp_path)
    process = run_tool("trainer", "it.yaml", *keys, cwd=tmp_path)
    (command,) = told(process.stderr, "next: ")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0 and told(done.stderr, "evaluated 1 epoch"), f"{command}\n{done.stderr}"


@pytest.mark.parametrize("whose, word", [("training", "done"), ("validation", "validation")])
def test_the_best_epoch_is_named_with_its_number_and_goes_on_to_the_export(whose, word, tmp_path):
    """The test data choose none: the validation's best epoch is evaluated and exported, or else the last one is."""
    data = small_data(tmp_path / "data")
    keys = [*KEYS, *data, "runner.epochs=3", "runner.keep_best=loss1", "hyper_parameters.optimizer.learning_rate=0.3"]
    keys += [data[1].replace("test_data", "validation_data")] if whose == "validation" else []
    process = run_here("trainer", ROOT / "config.yaml", *keys, cwd=tmp_path)
    lines = [line for line in told(process.stderr, "epoch: ") if f" {word}," in line]
    losses = [float(re.search(r"loss1: (\S+),", line).group(1)) for line in lines]
    (text,) = told(process.stderr, "best epoch: ")
    assert len(losses) == 3 and text.startswith(f"{losses.index(min(losses))} (by loss1 of the {whose}), ")
    assert f" loss1 {min(losses):.6f}" in text
    (command,) = told(process.stderr, "next: ")
    assert ("runner.infer_epoch=best" in command) == (whose == "validation")
    chosen = "best" if whose == "validation" else 2
    more = ["runner.infer_epoch=best"] if whose == "validation" else ["runner.infer_end_epoch=3"]
    process = run_here("infer", ROOT / "config.yaml", *keys, *more, cwd=tmp_path)
    assert told(process.stderr, "best epoch: ") == [] and told(process.stderr, "last epoch: ")
    assert f"runner.export_epoch={chosen}" in told(process.stderr, "next: ")[0]


def test_epochs_saved_before_there_was_a_validation_count(tmp_path):
    data = small_data(tmp_path / "data")
    for more in ([], ["runner.resume=auto", data[1].replace("test_data", "validation_data")]):
        process = run_here("trainer", ROOT / "config.yaml", *KEYS, *data, *more, cwd=tmp_path)
        assert told(process.stderr, "trained 2 of 2 epochs"), process.stderr
    assert "batch_id" not in process.stderr and told(process.stderr, "last epoch: 1 (of the validation)") == [""]


def test_a_package_that_export_does_not_know_has_no_next_command_after_an_evaluation(tmp_path):
    config = ROOT / "tests" / "foreign" / "price" / "config.yaml"
    script, process = next_here(run_here("trainer", config, cwd=tmp_path), tmp_path)
    assert script == "infer.py" and not told(process.stderr, "next: ") and "experts" not in process.stderr


def test_no_line_of_the_summary_looks_like_a_number_to_scripts(tmp_path):
    """Paddle's look for ips: and auc:, each followed by a blank."""
    config = ROOT / "tests" / "foreign" / "clicks" / "config.yaml"
    for tool in ("trainer", "infer"):
        lines = run_here(tool, config, "runner.keep_best=auc", cwd=tmp_path).stderr.splitlines()
        summary = lines[[" done, " in line for line in lines][::-1].index(True) * -1 :]
        assert any("epoch: 1 (" in line and ", auc " in line for line in summary)
        assert not any(re.search(r"\b(ips|auc): ", line) for line in summary), summary


def command_of(monkeypatch, *overrides, argv="tools/trainer.py", path="config.yaml"):
    monkeypatch.setattr(sys, "argv", [argv])
    return commands.Commands("dynamic", "train", path, overrides)


def test_overrides_that_matter_are_kept_and_the_last_of_a_key_counts(monkeypatch):
    given = ["runner.epochs=5", "hyper_parameters.gamma=2", "runner.seed=3", "runner.resume=off", "own.key=a=b"]
    mine = command_of(monkeypatch, *given, "hyper_parameters.gamma=3")
    words = shlex.split(mine.of("infer", infer_load_path="a b"))[1:]
    kept = ["hyper_parameters.gamma=3", "runner.seed=3", "own.key=a=b", "runner.infer_load_path=a b"]
    assert words == ["tools/infer.py", "-m", "config.yaml", "-o", *kept]
    assert shlex.split(mine.again(resume="auto"))[4:] == [
        "-o", "runner.epochs=5", "hyper_parameters.gamma=3", "runner.seed=3", "runner.resume=auto", "own.key=a=b",
    ]  # fmt: skip
    assert command_of(monkeypatch).of("infer").endswith("tools/infer.py -m config.yaml")


def test_the_interpreter_is_the_one_that_runs(monkeypatch, tmp_path):
    def first(executable, on_path):
        monkeypatch.setattr(sys, "executable", str(executable))
        monkeypatch.setattr(shutil, "which", lambda name: on_path.get(name))
        return shlex.split(command_of(monkeypatch).of("infer"))[0]

    monkeypatch.chdir(tmp_path)
    env = tmp_path / ".venv" / "bin" / "python"
    assert first(env, {"python": str(env)}) == "python"
    assert first("/usr/bin/python3", {"python": str(env), "python3": "/usr/bin/python3"}) == "python3"
    assert first(env, {"python": "/usr/bin/python"}) == "./.venv/bin/python"
    assert first("/opt/python", {}) == "/opt/python"


def test_on_windows_it_is_quoted_for_its_shell(monkeypatch):
    monkeypatch.setattr(commands.os, "name", "nt")
    mine = command_of(monkeypatch, "hyper_parameters.tasks=[a b]")
    assert mine.of("infer").endswith('-o "hyper_parameters.tasks=[a b]"')
