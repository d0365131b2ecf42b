"""docs/from_paddlerec.md: its files are written, and its commands run, beside the package that it starts with."""

import re
import shutil

import pytest

from support import ROOT
from support.docs import commands_in, files_in, read, run, section

PAGE = read("docs/from_paddlerec.md")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """(Folder, command -> its log)."""
    folder = tmp_path_factory.mktemp("moved")
    shutil.copytree(ROOT / "tests" / "foreign" / "clicks", folder / "clicks")
    (folder / "clicks_dselect_k").mkdir()
    shutil.copy(folder / "clicks" / "click_reader.py", folder / "clicks_dselect_k")
    for name, content in files_in(PAGE).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder, {command: run(command, folder) for command in commands_in(PAGE)}


def test_the_package_runs_unchanged_and_with_a_mixture(logs):
    _, log_of = logs
    for package, metric in (("clicks/", "auc"), ("clicks_dselect_k/", "auc_click")):
        for tool in ("infer", "static_infer"):
            log = log_of[f"python tools/{tool}.py -m {package}config.yaml"]
            areas = [float(area) for area in re.findall(rf"epoch: \d done, .*?\b{metric}: ([\d.]+)", log)]
            assert len(areas) == 2 and all(0 <= area <= 1 for area in areas), log


def test_the_exported_model_gives_probabilities(logs):
    folder, _ = logs
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,label_click,prediction_click,probability_click"
    examples = (folder / "clicks" / "data").glob("*.txt")
    assert len(lines) - 1 == sum(len(path.read_text().splitlines()) for path in examples)
    assert all(0 < float(line.split(",")[3]) < 1 for line in lines[1:])


def test_every_key_of_ours_in_the_table_is_one():
    keys = read("docs/keys.md")
    cells = re.findall(r"^\| .*? \| (.*) \|$", section(PAGE, "Keys"), re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    assert named and [name for name in named if f".{name}`" not in keys] == []
