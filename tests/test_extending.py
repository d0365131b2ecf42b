"""docs/extending.md: each section's files are written, and its commands run, in a copy of the package's folder."""

import csv
import math
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from toolbox import JOBS, run_here, small_data

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {title: text for title, text in re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE)}
TABLE = ("An MLP expert on dense features and sparse ids", "Classification, regression and a task with missing labels")
READER = "A reader of other data"
GATE = "A gate of your own"
TEST_NUM = 50


def files_in(text):
    """The files that a page, or a section of it, shows: name -> content."""
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def commands_in(text):
    """Its commands, in order."""
    return "".join(re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()


def files_of(title):
    return files_in(SECTIONS[title])


def commands_of(title):
    assert SECTIONS[title].count("```console\n") == 1
    return commands_in(SECTIONS[title])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The package's files, and a part of the sample."""
    folder = tmp_path_factory.mktemp("copy")
    for pattern in ("*.py", "*.yaml"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, folder)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    small_data(folder / "data", TEST_NUM)
    return folder


def run(command, folder, by_process=()):
    """What a command says on stderr; as a process if its tool is named, or within this one, which is faster."""
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    tool = script[len("tools/") : -len(".py")]
    if tool in by_process or tool not in JOBS:
        process = subprocess.run([sys.executable, script, *arguments], cwd=folder, capture_output=True, text=True)
    else:
        assert arguments[0] == "-m" and arguments[2:3] in ([], ["-o"])
        process = run_here(tool, folder / arguments[1], *arguments[3:], cwd=folder)
    assert process.returncode == 0, f"{command}\n{process.stderr}"
    return process.stderr


def write(title, folder):
    for name, content in files_of(title).items():
        (folder / name).write_text(content, encoding="utf-8")


def logs_of(title, folder, by_process=()):
    """Write a section's files and run its commands: tool or script -> what it said."""
    if title in TABLE and not (folder / "visits").exists():  # where this test runs alone
        write(READER, folder)
        run(commands_of(READER)[0], folder)
    write(title, folder)
    return {command.split()[1]: run(command, folder, by_process) for command in commands_of(title)}


def done(log):
    """The numbers of the line of the epoch: name -> float."""
    (line,) = re.findall(r"epoch: 0 done, (.*), epoch time", log)
    numbers = {name: float(number) for name, number in re.findall(r"(\w+): ([^, ]+)", line)}
    assert all(math.isfinite(number) for number in numbers.values()), line
    return numbers


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_says_which_files_it_takes(title):
    (said,) = re.findall(r"^Files: (.*)$", SECTIONS[title], re.MULTILINE)
    new = re.findall(r"`([^`]+)`", said)
    assert sorted(files_of(title)) == sorted(new)
    assert not any((ROOT / name).exists() for name in new), "the page would overwrite a file of the package"
    for content in files_of(title).values():
        assert max(map(len, content.splitlines())) <= 120
    tools = [command.split()[1] for command in commands_of(title) if "tools/" in command]
    assert tools[:4] == [f"tools/{name}.py" for name in ("trainer", "infer", "static_trainer", "static_infer")]


def test_the_list_at_the_top_is_of_the_sections():
    anchors = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert sorted(anchors) == sorted(re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in SECTIONS)


def test_a_gate_by_processes_and_served(folder):
    """Some commands as a user's shell runs them, with the copy's own tools."""
    logs = logs_of(GATE, folder, by_process=("trainer", "static_infer", "predict"))
    assert 1 <= done(logs["tools/infer.py"])["experts_used"] <= 8
    served = table(folder / "predictions.csv")
    assert len(served) == TEST_NUM
    right = sum(row["prediction1"] == row["label1"] for row in served)
    assert right / TEST_NUM == pytest.approx(done(logs["tools/static_infer.py"])["Accuracy1"], abs=1e-6)


@pytest.mark.parametrize("title", [title for title in SECTIONS if title not in (GATE, *TABLE)])
def test_a_section_trains_and_evaluates_in_both_graphs(title, folder):
    logs = logs_of(title, folder)
    for log in (logs["tools/infer.py"], logs["tools/static_infer.py"]):
        assert 0 <= done(log)["Accuracy1"] <= 1
    if title == READER:
        assert done(logs["tools/infer.py"])["Accuracy1"] > 0.5, "it has learned nothing"


def test_experts_on_dense_features_and_ids(folder):
    logs = logs_of(TABLE[0], folder)
    for tool in ("infer", "static_infer"):
        numbers = done(logs[f"tools/{tool}.py"])
        assert numbers["Accuracy1"] > 0.5 and numbers["experts_used"] <= 8


def test_tasks_of_three_kinds_with_labels_missing_are_trained_and_served(folder):
    logs = logs_of(TABLE[1], folder)
    for tool in ("infer", "static_infer"):
        numbers = done(logs[f"tools/{tool}.py"])
        assert numbers["Accuracy_rating"] > 0.5 and numbers["auc_bought"] > 0.8 and numbers["mae_spent"] < 0.25
    served = table(folder / "visits.csv")
    test = table(folder / "visits" / "test" / "visits.csv")
    assert len(served) == len(test) == 500
    labelled = [(ours, row) for ours, row in zip(served, test) if row["bought"]]
    assert 250 < len(labelled) < 450, "some labels are missing"
    assert all(float(ours["label_bought"]) == float(row["bought"]) for ours, row in labelled)
    error = sum(abs(float(ours["value_spent"]) - float(row["spent"])) for ours, row in labelled) / len(labelled)
    assert error == pytest.approx(numbers["mae_spent"], abs=1e-4)
    assert {"prediction_rating", "probability_rating", "probability_bought"} <= set(served[0])
