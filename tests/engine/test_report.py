"""tools/engine/report.py: the summary at the end of a run; tools.py: its next command, which is run here."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from engine import tools
from support import ROOT
from support.toolbox import TIMEOUT_S, copy_model, run_here, small_data

KEYS = ["runner.epochs=2", "runner.print_interval=9", "runner.train_batch_size=16", "runner.to_static=false"]
KEYS += ["hyper_parameters.expert_num=2", "hyper_parameters.expert_size=8", "runner.infer_batch_size=32"]
INFO = " - INFO - "


def logged(stderr, beginning):
    """The rest of each log message that begins so."""
    messages = [line.split(INFO, 1)[1] for line in stderr.splitlines() if INFO in line]
    return [message[len(beginning) :] for message in messages if message.startswith(beginning)]


def run_next(process, cwd):
    """Run the command that a tool has printed, within this process."""
    (command,) = logged(process.stderr, "next: ")
    python, script, option, config, *rest = shlex.split(command)
    assert option == "-m" and rest[:1] in ([], ["-o"]) and python.startswith(("python", "/", "./")), command
    folder, _, name = script.rpartition("/")
    assert folder == str(ROOT / "tools")
    process = run_here(name[: -len(".py")], config, *rest[1:], cwd=cwd)
    assert process.returncode == 0, f"{command}\n{process.stderr}"
    return name, process


@pytest.mark.parametrize("graph", ["", "static_"])
def test_each_printed_command_leads_on_to_the_predictions(tmp_path, graph):
    """From a folder with a blank in its name, with another model_save_path, past the config's infer_end_epoch."""
    keys = [*KEYS, *small_data(tmp_path / "the data"), "runner.model_save_path=my saves", "runner.infer_end_epoch=1"]
    process, scripts = run_here(f"{graph}trainer", ROOT / "config.yaml", *keys, cwd=tmp_path), []
    last = logged(process.stderr, "epoch: 1 done, ")[0]
    assert logged(process.stderr, "trained 2 of 2 epochs; this run took ")[0].endswith("my saves")
    metrics = logged(process.stderr, "last epoch: 1 (of the training), ")[0]
    assert metrics.split(", ") == last.replace(":", "").split(", ")[:-1], "those of the done line, without its time"
    while "next: " in process.stderr:
        script, process = run_next(process, tmp_path)
        scripts.append(script)
        if "infer" in script:
            assert [line[0] for line in logged(process.stderr, "epoch: ") if " done, " in line] == ["0", "1"]
    assert scripts == [f"{graph}infer.py", "export.py", "predict.py"]
    assert (tmp_path / "predictions.csv").exists()


def test_the_command_works_in_a_shell(tmp_path):
    keys = [*KEYS, *small_data(tmp_path / "data"), "runner.epochs=1", "runner.model_save_path=it's saved"]
    (tmp_path / "it.yaml").write_text((ROOT / "config.yaml").read_text())
    copy_model(tmp_path)
    process = run_here("trainer", "it.yaml", *keys, cwd=tmp_path)
    (command,) = logged(process.stderr, "next: ")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0 and logged(done.stderr, "evaluated 1 epoch"), f"{command}\n{done.stderr}"


@pytest.mark.parametrize(
    "source,metric,best,value", [("training", "first", 0, "2.000000"), ("validation", "error", 2, "1.666667")]
)
def test_only_the_validation_chooses_the_epoch_to_export(source, metric, best, value, toy):
    """See test_validation.py for the toy's metrics."""
    keys = ["runner.epochs=4", f"runner.keep_best={metric}", "runner.save_inference_fetch_varnames=[loss]"]
    keys += ["runner.validation_data_dir=held"] if source == "validation" else []
    process = toy("static_trainer", *keys)
    (text,) = logged(process.stderr, "best epoch: ")
    assert text.startswith(f"{best} (by {metric} of the {source}), ") and f" {metric} {value}" in text
    (command,) = logged(process.stderr, "next: ")
    assert ("runner.infer_epoch=best" in command) == (source == "validation")
    more = ["runner.infer_epoch=best"] if source == "validation" else ["runner.infer_end_epoch=4"]
    process = toy("static_infer", *keys, *more)
    assert logged(process.stderr, "best epoch: ") == [] and logged(process.stderr, "last evaluated epoch: ")
    chosen = "best" if source == "validation" else 3
    assert f"runner.export_epoch={chosen}" in logged(process.stderr, "next: ")[0]


def test_epochs_from_before_the_validation_was_configured_are_counted(toy):
    for more in ([], ["runner.resume=auto", "runner.validation_data_dir=held"]):
        process = toy("trainer", "runner.epochs=2", *more)
        assert logged(process.stderr, "trained 2 of 2 epochs"), process.stderr
    assert "batch_id" not in process.stderr and logged(process.stderr, "last epoch: 1 (of the validation)") == [""]


def test_other_packages_have_summaries_that_no_script_takes_for_metrics(tmp_path):
    """PaddlePaddle's scripts look for ips: and auc:, each followed by a blank. Only our model says what to export."""
    config = ROOT / "tests" / "foreign" / "clicks" / "config.yaml"
    script, infer = run_next(train := run_here("trainer", config, "runner.keep_best=auc", cwd=tmp_path), tmp_path)
    for run in (train, infer):
        lines = run.stderr.splitlines()
        summary = lines[[" done, " in line for line in lines][::-1].index(True) * -1 :]
        assert any("epoch: 1 (" in line and ", auc " in line for line in summary)
        assert not any(re.search(r"\b(ips|auc): ", line) for line in summary), summary
    assert script == "infer.py" and not logged(infer.stderr, "next: ") and "experts" not in infer.stderr


def command(*overrides, tool="infer", **changes):
    return tools.command_line(tools.TOOLS[tool], "config.yaml", overrides, **changes)


def test_relevant_overrides_are_kept_and_the_last_of_a_key_counts(monkeypatch):
    monkeypatch.chdir(ROOT)
    given = ["runner.epochs=5", "hyper_parameters.gamma=2", "runner.seed=3", "runner.resume=off", "own.key=a=b"]
    given += ["hyper_parameters.gamma=3"]
    words = shlex.split(command(*given, infer_load_path="a b"))[1:]
    kept = ["hyper_parameters.gamma=3", "runner.seed=3", "own.key=a=b", "runner.infer_load_path=a b"]
    assert words == ["tools/infer.py", "-m", "config.yaml", "-o", *kept]
    assert shlex.split(command(*given, tool="trainer", resume="auto"))[4:] == [
        "-o", "runner.epochs=5", "hyper_parameters.gamma=3", "runner.seed=3", "runner.resume=auto", "own.key=a=b",
    ]  # fmt: skip
    assert command().endswith("tools/infer.py -m config.yaml")


def test_the_command_starts_the_same_interpreter(monkeypatch, tmp_path):
    def first(executable, on_path):
        monkeypatch.setattr(sys, "executable", str(executable))
        monkeypatch.setattr(shutil, "which", lambda name: on_path.get(name))
        return shlex.split(command())[0]

    monkeypatch.chdir(tmp_path)
    env = tmp_path / ".venv" / "bin" / "python"
    assert first(env, {"python": str(env)}) == "python"
    assert first("/usr/bin/python3", {"python": str(env), "python3": "/usr/bin/python3"}) == "python3"
    assert first(env, {"python": "/usr/bin/python"}) == "./.venv/bin/python"
    assert first("/opt/python", {}) == "/opt/python"


def test_the_command_is_quoted_for_the_shell_of_windows(monkeypatch):
    monkeypatch.setattr(tools.os, "name", "nt")
    assert command("hyper_parameters.tasks=[a b]").endswith('-o "hyper_parameters.tasks=[a b]"')
