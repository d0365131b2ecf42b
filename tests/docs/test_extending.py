"""docs/extending.md: each section's files are written, and its commands run, in a copy of the package's folder."""

import math
import re
import shutil

import pytest

from support import ROOT
from support.docs import commands_in, files_in, read, run, section, table
from support.toolbox import copy_model, small_data

PAGE = read("docs/extending.md")
TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
GATE = "A gate of your own"
READER = "A reader of other data"
FEATURES = "MLP experts on numeric and categorical features"
TASKS = "Classes, yes or no, and numbers, with missing labels"
KIND, METRIC = "A kind of task of your own", "A metric of your own"
TEST_NUM = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package's files, with fewer experts in the config, and a part of the sample."""
    folder = tmp_path_factory.mktemp("copy")
    copy_model(folder)
    config = (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert "expert_num: 8 " in config
    (folder / "config.yaml").write_text(config.replace("expert_num: 8 ", "expert_num: 3 "), encoding="utf-8")
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    small_data(folder / "data", TEST_NUM)
    return folder


def write_files(title, folder):
    for name, content in files_in(section(PAGE, title)).items():
        assert not (ROOT / name).exists(), "the page would overwrite a file of the package"
        (folder / name).write_text(content, encoding="utf-8")


def logs_of(title, folder, as_process=()):
    """Write a section's files and run its commands: script -> its log."""
    if title in (FEATURES, TASKS, KIND, METRIC) and not (folder / "visits").exists():  # where this test runs alone
        write_files(READER, folder)
        run(commands_in(section(PAGE, READER))[0], folder)
    if title in (KIND, METRIC):
        write_files(TASKS, folder)
    write_files(title, folder)
    commands = commands_in(section(PAGE, title))
    return {command.split()[1]: run(command, folder, as_process) for command in commands}


def metrics_in(log):
    """The metrics on the line of the epoch: name -> float."""
    (line,) = re.findall(r"epoch: 0 done, (.*), epoch time", log)
    metrics = {name: float(value) for name, value in re.findall(r"(\w+): ([^, ]+)", line)}
    assert all(math.isfinite(value) for value in metrics.values()), line
    return metrics


def test_a_gate_runs_as_a_process_and_is_served(folder):
    """One command as a user's shell runs it, with the copy's own tools."""
    logs = logs_of(GATE, folder, as_process=("static_trainer",))
    assert 1 <= metrics_in(logs["tools/infer.py"])["experts_used"] <= 3
    served = table(folder / "predictions.csv")
    assert len(served) == TEST_NUM
    right = sum(row["prediction1"] == row["label1"] for row in served)
    assert right / TEST_NUM == pytest.approx(metrics_in(logs["tools/static_infer.py"])["Accuracy1"], abs=1e-6)


@pytest.mark.parametrize("title", [title for title in TITLES if title not in (GATE, TASKS, KIND, METRIC)])
def test_a_section_trains_and_evaluates_in_both_graphs(title, folder):
    logs = logs_of(title, folder)
    for tool in ("infer", "static_infer"):
        accuracy = metrics_in(logs[f"tools/{tool}.py"])["Accuracy1"]
        assert (0.5 if title in (READER, FEATURES) else 0) <= accuracy <= 1


def test_three_tasks_with_missing_labels_are_trained_and_served(folder):
    logs = logs_of(TASKS, folder)
    for tool in ("infer", "static_infer"):
        metrics = metrics_in(logs[f"tools/{tool}.py"])
        assert metrics["Accuracy_rating"] > 0.5 and metrics["auc_bought"] > 0.8 and metrics["mae_spent"] < 0.25
    served = table(folder / "visits.csv")
    test = table(folder / "visits" / "test" / "visits.csv")
    assert len(served) == len(test) == 500
    labelled = [(ours, row) for ours, row in zip(served, test) if row["bought"]]
    assert 250 < len(labelled) < 450, "some labels are missing"
    assert all(float(ours["label_bought"]) == float(row["bought"]) for ours, row in labelled)
    error = sum(abs(float(ours["value_spent"]) - float(row["spent"])) for ours, row in labelled) / len(labelled)
    assert error == pytest.approx(metrics["mae_spent"], abs=1e-4)


def test_a_kind_of_ones_own_is_trained_and_served(folder):
    logs = logs_of(KIND, folder)
    maes = [metrics_in(logs[f"tools/{tool}.py"])["mae_rating"] for tool in ("infer", "static_infer")]
    assert maes[0] < 0.8 and maes[1] < 0.8  # ratings are 0, 1 and 2
    served = table(folder / "counts.csv")
    error = [abs(float(row["value_rating"]) - float(row["label_rating"])) for row in served]
    assert sum(error) / len(error) == pytest.approx(maes[1], abs=1e-4)


def test_a_metric_of_ones_own_is_reported(folder):
    logs = logs_of(METRIC, folder)
    for tool in ("trainer", "infer", "static_trainer", "static_infer"):
        metrics = metrics_in(logs[f"tools/{tool}.py"])
        assert 0 < metrics["brier_bought"] < 0.3 and metrics["auc_bought"] > 0.5 and "logloss_bought" not in metrics
