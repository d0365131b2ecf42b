"""docs/tables.md: write its files and run its commands, as a reader of the page would."""

import ast
import re
import shutil

import pytest

from support import ROOT
from support.docs import commands_in, files_in, run, table
from support.toolbox import copy_model

PAGE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """(Folder, command -> its log)."""
    folder = tmp_path_factory.mktemp("kit")
    copy_model(folder)
    for name in ("tabular", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "make_vocabulary.py", folder / "data")
    for name, content in files_in(PAGE).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder, {command: run(command, folder) for command in commands_in(PAGE)}


def test_three_tasks_are_learned_in_both_graphs(logs):
    _, said = logs
    assert len(said) == 10
    for tool in ("infer", "static_infer"):
        line = re.findall(r"epoch: \d+ done, .*", said[f"python tools/{tool}.py -m shop/config.yaml"])[0]
        numbers = {name: float(number) for name, number in re.findall(r"(\w+): ([\d.]+)", line)}
        assert numbers["Accuracy_rating"] > 0.8 and numbers["auc_bought"] > 0.95 and numbers["mae_spent"] < 10, line


def test_new_rows_without_labels_are_predicted(logs):
    folder, _ = logs
    served, new = table(folder / "shop" / "predictions.csv"), table(folder / "shop" / "new" / "visits.csv")
    assert [int(row["index"]) for row in served] == list(range(len(new))) and len(new) == 100
    assert {"shop 5"} <= {row["shop"] for row in new}, "a shop that training did not have"
    names = "index prediction_rating probability_rating prediction_bought probability_bought value_spent".split()
    assert list(served[0]) == names
    assert {row["prediction_rating"] for row in served} == {"bad", "fair", "good"}
    assert {row["prediction_bought"] for row in served} == {"no", "yes"}
    assert (folder / "shop" / "exported" / "rec_inference.vocabulary.json").exists()


def test_a_program_of_your_own_asks_the_exported_model(logs):
    folder, said = logs
    rows = "price,minutes,shop,product,basket\n0.2,0.7,shop 1,p3,p0 p5\n0.9,,shop 9,p0,\n"
    (folder / "shop" / "asked").mkdir()
    (folder / "shop" / "asked" / "a.csv").write_text(rows)
    keys = "runner.test_data_dir=asked runner.predict_path=asked.csv"
    run(f"python tools/predict.py -m shop/config.yaml -o {keys}", folder)
    expected = [float(row["value_spent"]) for row in table(folder / "asked.csv")]
    found = re.search(r"'value_spent': array\((\[.*?\])\s*, dtype", said["python ask.py"], re.DOTALL).group(1)
    assert ast.literal_eval(found) == pytest.approx(expected, rel=1e-5, abs=1e-4), found
    assert "50% of the values of shop (1 of 2) are not in" in said["python ask.py"]


def test_the_page_names_what_is_an_empty_field():
    from pyarrow import csv

    listed = re.search(r"`null_values`\): (.*?)\. Any other", PAGE, re.DOTALL).group(1)
    assert re.findall(r"`(.*?)`", listed) == [text for text in csv.ConvertOptions().null_values if text]


def test_the_page_names_the_keys_of_the_reader():
    from tabular import reader as table_reader

    assert [name for name in table_reader.RecDataset.config_keys if f"runner.{name}" not in PAGE] == []
