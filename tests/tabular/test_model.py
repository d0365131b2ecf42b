"""tabular/model.py: an exported model in a user's program, against tools/predict.py on the same rows."""

import concurrent.futures
import csv
import json
import os
import shutil
import subprocess
import sys
import types

import numpy as np
import paddle
import pyarrow as pa
import pytest
import yaml

from support import ROOT
from support.tables import COLUMNS, Folder, make_rows, write
from support.toolbox import run_here, run_tool
from tabular.model import Model

INPUTS, BATCH = COLUMNS[:4], 7
NAMES = {"rating": ["bad", "fair", "good"], "bought": ["no", "yes"]}
TASKS = [
    {"name": "rating", "classes": NAMES["rating"]},
    {"name": "bought", "kind": "binary", "classes": NAMES["bought"]},
    {"name": "spent", "kind": "regression", "mean": 1000.0, "deviation": 2.0},
]
CONVERT = dict(zip(INPUTS, (float, float, str, int)))


def with_names(row):
    """A row of ``make_rows`` with class names as labels, and amounts of about a thousand."""
    rating, bought = (
        names[int(field)] if field else "" for names, field in zip((NAMES["rating"], NAMES["bought"]), row[4:6])
    )
    return [*row[:4], rating, bought, str(1000 + float(row[6])) if row[6] else ""]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with an exported model, rows to ask it for, and what predict.py writes of them."""
    path, rng = tmp_path_factory.mktemp("work"), np.random.RandomState(5)
    folder = Folder(path, ["a.csv"], [with_names(row) for row in make_rows(rng, 120)])
    folder.make_vocabulary(pieces=3)
    runner = {
        "train_data_dir": "train", "test_data_dir": "asked", "train_reader_path": "tabular.reader",
        "infer_reader_path": "tabular.reader", "vocabulary": "vocabulary.json", "epochs": 1, "train_batch_size": 10,
        "infer_batch_size": BATCH, "print_interval": 100, "model_save_path": "output", "infer_load_path": "output",
    }  # fmt: skip
    dense_size = sum(len(number["edges"]) + number.get("missing", False) for number in folder.numbers)
    sizes = folder.config()["hyper_parameters.input.vocabulary_sizes"]
    hyper = {"input": {"dense_size": dense_size, "vocabulary_sizes": sizes}, "tasks": TASKS, "expert_num": 2}
    (path / "config.yaml").write_text(yaml.safe_dump({"runner": runner, "hyper_parameters": hyper}))
    for tool in ("trainer", "export"):
        done(run_here(tool, path / "config.yaml", cwd=path))
    rows = [*(row[:4] for row in make_rows(rng, 50)), ["0.3", "0.1", "nowhere", "77"]]
    write(path / "asked" / "a.csv", rows, INPUTS)
    for file in ("csv", "npz"):
        done(run_here("predict", path / "config.yaml", f"runner.predict_path=by_tool.{file}", cwd=path))
    with open(path / "by_tool.csv", newline="") as file:
        names = next(csv.reader(file))[1:]
    with np.load(path / "by_tool.npz") as by_tool:
        expected = {name: by_tool[name].reshape(len(rows)) for name in names}
    columns = {
        name: [CONVERT[name](field) if field else None for field in column] for name, column in zip(INPUTS, zip(*rows))
    }
    return types.SimpleNamespace(path=path, folder=str(path / "exported"), columns=columns, expected=expected)


def done(process):
    assert process.returncode == 0, process.stderr


def assert_same(answers, expected):
    """The same columns in the same order, of the same dtypes and bits."""
    assert list(answers) == list(expected)
    for name, answer in answers.items():
        assert (answer.dtype, answer.tobytes()) == (expected[name].dtype, expected[name].tobytes()), name


@pytest.fixture(scope="module")
def model(work):
    return Model(work.folder, BATCH)


def rows_of(columns):
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def made_by(library, make):
    """A form of a table that a library makes of a dict of lists; skips the test where there is no such library."""
    return lambda columns: getattr(pytest.importorskip(library), make)(columns)


FORMS = {
    "a dict of lists": dict,
    "a dict of arrays": lambda columns: {name: np.array(column, object) for name, column in columns.items()},
    "rows": rows_of,
    "pyarrow": pa.table,
    "pandas": made_by("pandas", "DataFrame"),
    "polars": made_by("polars", "DataFrame"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_table_in_any_form_gets_the_answers_of_the_tool(form, work, model):
    assert_same(model.predict(form(work.columns)), work.expected)


PROGRAM = """
import os, sys
before = list(sys.path), dict(os.environ)
import json, paddle, numpy
from tabular.model import Model
with open("columns.json") as file:
    columns = json.load(file)
numpy.savez("by_program.npz", **Model("exported", 7).predict(columns))
after = list(sys.path), {name: os.environ[name] for name in before[1]}
assert before == after and "MKL_DEBUG_CPU_TYPE" not in os.environ and paddle.in_dynamic_mode()
"""


def test_a_program_that_has_only_the_projects_folder_on_its_path_gets_them(work):
    """In new processes: on AMD, MKL computes there as the tool has it compute, to other bits than here."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_DEBUG_CPU_TYPE"}
    (work.path / "columns.json").write_text(json.dumps(work.columns))
    program = [sys.executable, "-c", PROGRAM]
    kwargs = {"cwd": work.path, "capture_output": True, "text": True}
    process = subprocess.run(program, env={**environment, "PYTHONPATH": str(ROOT)}, **kwargs)
    done(process)
    assert "INFO" not in process.stderr, "what the tools log is not the program's"
    file = "runner.predict_path=by_tool_alone.npz"
    done(run_tool("predict", work.path / "config.yaml", file, cwd=work.path, env={"PYTHONPATH": ""}))
    with np.load(work.path / "by_program.npz") as answers, np.load(work.path / "by_tool_alone.npz") as by_tool:
        assert_same(dict(answers), {name: by_tool[name].reshape(-1) for name in work.expected})


def test_answers_are_names_of_classes_and_amounts_in_the_labels_unit(work, model):
    answers = model.predict(work.columns)
    for task, names in NAMES.items():
        assert {*answers[f"prediction_{task}"]} <= {*names}
        assert (answers[f"probability_{task}"] >= 0).all() and (answers[f"probability_{task}"] <= 1).all()
    assert (abs(answers["value_spent"] - 1000) < 100).all()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_empty_table_has_empty_answers(form, work, model):
    none = {name: column[:0] for name, column in work.expected.items()}
    assert_same(model.predict(form({name: [] for name in INPUTS})), none)


def test_columns_that_the_model_does_not_know_are_not_read(work, model):
    assert_same(model.predict({"other": [object()], **work.columns}), work.expected)


RIGHT = {"price": [1.0], "minutes": [2.0], "shop": ["shop 1"], "product": [3]}
WRONG = {
    "a missing column": ({k: v for k, v in RIGHT.items() if k != "shop"}, "there is no column 'shop'; the columns are"),
    "a missing field": (rows_of(RIGHT) + [{"price": 1}], "row 1: there is no 'minutes'. Give None for an empty field"),
    "a text as a number": ({**RIGHT, "price": ["cheap"]}, "row 0: price is 'cheap', not a number"),
    "a list as a category": ({**RIGHT, "shop": [["shop 1"]]}, "row 0: shop is a list, not a text"),
    "a column of times": (pa.table({**RIGHT, "price": pa.array([0], pa.date32())}), "price has no numbers: its type"),
    "lengths": ({**RIGHT, "shop": ["a", "b"]}, "different lengths: price 1, minutes 1, shop 2, product 1"),
    "one row": ({name: column[0] for name, column in RIGHT.items()}, "the column price must be a list"),
    "an array": (
        np.ones([2, 4]),
        "a table of pandas, pyarrow or polars, a dict of lists, or a list of dicts, not ndar",
    ),
    "rows without names": ([[1, 2, "a", 3]], "row 0 is .1, 2, 'a', 3., but must be a dict"),
    "a fraction": ({**RIGHT, "product": [3.7]}, "row 0: product is 3.7, but all its values in .* are whole numbers"),
    "an inexact id": ({**RIGHT, "product": [2.0**53]}, "row 0: product is the float 9007199254740992.0, too large"),
}


@pytest.mark.parametrize("table,words", WRONG.values(), ids=WRONG)
def test_a_mistake_in_a_table_is_named(table, words, model):
    with pytest.raises(ValueError, match=words):
        model.predict(table)


def test_a_whole_number_may_be_a_float(model):
    assert_same(model.predict({**RIGHT, "product": [3.0]}), model.predict(RIGHT))


def test_values_without_an_id_are_warned_of_again_if_they_are_more(work, caplog):
    """A larger share than was told before, or ten times as many in all."""
    model, words = (
        Model(work.folder),
        f"are not in {work.folder}/rec_inference.vocabulary.json and count as unknown (id 0)",
    )
    for shops, told in (
        (["shop 1", "new"], [f"50% of the values of shop (1 of 2) {words}, such as 'new'"]),
        (["new", "shop 1"], []),
        (["new", None, "new", "newer"], [f"100% of the values of shop (3 of 3) {words}, such as 'new', 'newer'"]),
        (["new"] * 44, []),
        (["shop 1", "newest"], [f"50% of the values of shop (1 of 2) {words}, such as 'newest'"]),
        (["newest"], []),
    ):
        caplog.clear()
        model.predict({**{name: column * len(shops) for name, column in RIGHT.items()}, "shop": shops})
        assert [record.message for record in caplog.records if record.name == "dselect_k"] == told


@pytest.mark.parametrize("mode", ["disable_static", "enable_static"])
def test_the_programs_graph_mode_is_left_alone(mode, work):
    getattr(paddle, mode)()
    before = paddle.in_dynamic_mode(), paddle.static.default_main_program()
    assert_same(Model(work.folder, BATCH).predict(work.columns), work.expected)
    assert (paddle.in_dynamic_mode(), paddle.static.default_main_program()) == before


@pytest.fixture
def eager_threads():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_several_threads_may_ask_one_model(work, model):
    batches = [slice(i, i + BATCH) for i in range(0, len(work.columns["shop"]), BATCH)] * 50
    tables = [{name: column[batch] for name, column in work.columns.items()} for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for answers, batch in zip(pool.map(model.predict, tables), batches):
            assert_same(answers, {name: column[batch] for name, column in work.expected.items()})


def change_signature(folder, change):
    path = folder / "signature.json"
    signature = json.loads(path.read_text())
    change(signature)
    path.write_text(json.dumps(signature))


def of_another_vocabulary(folder):
    path = folder / "rec_inference.vocabulary.json"
    path.write_text(path.read_text() + " ")


def of_another_vocabulary_without_digest(folder):
    of_another_vocabulary(folder)
    change_signature(folder, lambda signature: signature["files"].pop("rec_inference.vocabulary.json"))


BROKEN = {
    "no signature": (lambda folder: (folder / "signature.json").unlink(), "signature.json cannot be read"),
    "another vocabulary": (of_another_vocabulary, "rec_inference.vocabulary.json"),
    "one that is not listed": (of_another_vocabulary_without_digest, "it was trained with a different vocabulary.json"),
    "none": (lambda folder: change_signature(folder, lambda s: s.pop("encoding")), "has 0 vocabularies"),
}


@pytest.mark.parametrize("spoil,words", BROKEN.values(), ids=BROKEN)
def test_a_folder_that_has_no_whole_export_of_a_table_is_refused(spoil, words, work, tmp_path):
    shutil.copytree(work.folder, tmp_path / "exported")
    spoil(tmp_path / "exported")
    with pytest.raises(ValueError, match=words):
        Model(str(tmp_path / "exported"))


def test_a_batch_of_no_rows_is_refused(work):
    with pytest.raises(ValueError, match="batch_size is 0, but must be"):
        Model(work.folder, batch_size=0)
