"""data/make_vocabulary.py: the vocabulary of the training rows, what it prints for the config, what it refuses."""

import csv
import json
import os
import re

import numpy as np
import pytest
import yaml

from dselect_k_model.hyper_parameters import HyperParameters
from support.tables import DENSE, LABELS, SPARSE, TASKS, Folder, make_rows, run_make_vocabulary, write_files
from support.toolbox import run_here
from tabular import first_config
from tabular.vocabulary import Vocabulary


@pytest.fixture
def mixed(tmp_path, rng):
    return Folder(tmp_path, ["a.csv", "b.csv.gz", "c.parquet"], make_rows(rng, 90))


def printed(process):
    """The lines for the config, as YAML reads them."""
    assert process.returncode == 0, process.stderr
    return yaml.safe_load(process.stdout.split("for the config:\n")[1])


def test_the_vocabulary_is_that_of_the_training_rows(mixed):
    for entry, column in zip(mixed.numbers, list(zip(*mixed.rows))[:2]):
        numbers = np.array([float(field) for field in column if field])
        assert entry["mean"] == pytest.approx(numbers.mean()) and entry["deviation"] == pytest.approx(numbers.std())
    for entry, column in zip(mixed.categories, list(zip(*mixed.rows))[2:4]):
        assert entry["values"] == sorted({field for field in column if field})


def test_frequent_values_have_ids(mixed):
    shops = [row[2] for row in mixed.rows if row[2]]
    counts = {shop: shops.count(shop) for shop in shops}
    mixed.make_vocabulary(max_size=2)
    assert set(mixed.categories[0]["values"]) == set(sorted(counts, key=lambda shop: (-counts[shop], shop))[:2])
    mixed.make_vocabulary(min_count=max(counts.values()))
    assert mixed.categories[0]["values"] == sorted(s for s in counts if counts[s] == max(counts.values()))


def test_the_command_prints_what_the_config_needs(mixed):
    columns = ["--dense", *DENSE, "--sparse", *SPARSE, "--labels", *LABELS]
    made = run_make_vocabulary(mixed.folder, "--train", "train", *columns, "--out", "new.json")
    config = printed(made)
    spent = config["tasks"][2]
    amounts = [float(row[6]) for row in mixed.rows if row[6]]
    assert spent.pop("mean") == pytest.approx(np.mean(amounts), rel=1e-5)
    assert spent.pop("deviation") == pytest.approx(np.std(amounts), rel=1e-5)
    assert config["tasks"] == TASKS
    new = json.loads((mixed.folder / "new.json").read_text())
    assert new["categories"] == mixed.categories and new["labels"] == [{"column": name} for name in LABELS]
    sizes = [1 + len(entry["edges"]) - 1 + entry["missing"] for entry in new["numbers"]]
    assert config["input"] == {"dense_size": sum(sizes), "vocabulary_sizes": [5, 10]}
    means = [entry["mean"] for entry in mixed.numbers]
    assert [entry["mean"] for entry in new["numbers"]] == pytest.approx(means), "the blocks are larger there"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--train", "train", "--dense", "weight"], "no column 'weight'"),
        (["--train", "train", "--dense", "price", "--sparse", "price"], "the column price is named twice"),
        (["--train", "train"], "--dense, --sparse or --lists"),
        (["--train", "nowhere", "--dense", "price"], "nowhere"),
        (["--train", ".", "--dense", "price"], "no table found"),
        (["--train", "train", "--dense", "shop"], "the column shop has no numbers: one field is 'shop"),
    ],
)
def test_a_mistake_is_refused_in_one_line(mixed, arguments, words):
    os.remove(mixed.folder / "vocabulary.json")
    process = run_make_vocabulary(mixed.folder, *arguments, "--out", "new.json")
    assert process.returncode == 2 and process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert words in process.stderr and not list(mixed.folder.glob("*.json*"))


def test_tasks_are_suggested_with_remarks_on_scale_and_empty_classes(tmp_path):
    lines = [f"{x},{1 + i % 4},{x * 1000.5},{x * 1e5 + 0.5},{x - 0.5}" for i, x in enumerate(range(20))]
    write_files(tmp_path, {"train/a.csv": "\n".join(["über,stars,big,huge,near", *lines]) + "\n"})
    columns = ["--dense", "über", "--labels", "stars", "big", "huge", "near", "--out", "v.json"]
    made = run_make_vocabulary(tmp_path, "--train", "train", *columns)
    assert "classes: 5}  # 1 to 4; classes start at 0: class 0 is empty; subtract 1\n" in made.stdout
    tasks = {task["name"]: task for task in printed(made)["tasks"]}
    for name, numbers in (
        ("big", np.arange(20) * 1000.5),
        ("huge", np.arange(20) * 1e5 + 0.5),
        ("near", np.arange(20) - 0.5),
    ):
        task = {"name": name, "kind": "regression", "mean": numbers.mean(), "deviation": numbers.std()}
        assert tasks[name] == {
            **task,
            "mean": pytest.approx(task["mean"]),
            "deviation": pytest.approx(task["deviation"]),
        }
    assert "über" in (tmp_path / "v.json").read_text(encoding="utf-8")


def write_labels(folder, names):
    """A training file with these labels; gives what the script prints of them."""
    (folder / "train").mkdir()
    with open(folder / "train" / "a.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["x", *names])
        csv.writer(file).writerows([i / 9, *[i % 2] * len(names)] for i in range(20))
    return run_make_vocabulary(folder, "--train", "train", "--dense", "x", "--labels", *names, "--out", "v.json")


def test_names_with_a_meaning_in_yaml_read_back(tmp_path):
    names = ["on", "no", "a: b", "y,z", "1", "null", "y", "1e5", 'say "hi"', "{x}", "größe", "a#b", "it's", "plain_1"]
    assert [task["name"] for task in printed(write_labels(tmp_path, names))["tasks"]] == names


def test_names_of_any_characters_train_in_both_graphs(tmp_path):
    names = ["1", 'größe: {a,b}#it\'s "x"']
    made = write_labels(tmp_path, names)
    runner = {
        "train_data_dir": "train", "test_data_dir": "train", "train_reader_path": "tabular.reader", "epochs": 1,
        "infer_reader_path": "tabular.reader", "vocabulary": "v.json", "train_batch_size": 10, "infer_batch_size": 20,
        "print_interval": 1,
    }  # fmt: skip
    lines = made.stdout.split("for the config:\n")[1]
    hyper = "hyper_parameters:\n  expert_num: 2\n  expert_size: 3\n  tower_size: 3\n"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"runner": runner}) + hyper + lines, encoding="utf-8")
    for tool in ("trainer", "infer", "static_trainer", "static_infer", "export", "predict"):
        process = run_here(tool, tmp_path / "config.yaml", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert all(f"auc_{name}: " in process.stderr for name in names) or tool == "export"
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert {f"prediction_{name}" for name in names} <= {*next(csv.reader(file))}


def test_a_column_of_texts_among_the_numbers_is_refused_with_a_remedy(tmp_path):
    write_files(tmp_path, {"train/a.csv": "x,y\n1,yes\n2,no\n,\n"})
    made = run_make_vocabulary(tmp_path, "--train", "train", "--sparse", "x", "--dense", "y", "--out", "v.json")
    assert made.returncode == 2 and "the column y has no numbers: one field is 'yes', not a number" in made.stderr
    assert "Name it in --sparse" in made.stderr and "Correct the row" not in made.stderr


@pytest.mark.parametrize("skipping", [[], ["--skip-bad-rows"]])
def test_labels_in_words_are_classes(skipping, tmp_path):
    lines = ["1,Fair,no", '2,"Good, or so",yes', "3,Fair,NA", "4, Ideal ,yes", "5,,no"]
    write_files(tmp_path, {"train/a.csv": "\n".join(["x,cut,big", *lines]) + "\n"})
    made = run_make_vocabulary(
        tmp_path, "--train", "train", "--dense", "x", "--labels", "cut", "big", "--out", "v.json", *skipping
    )
    assert printed(made)["tasks"] == [
        {"name": "cut", "classes": ["Fair", "Good, or so", "Ideal"]},
        {"name": "big", "kind": "binary", "classes": ["no", "yes"]},
    ]
    assert made.stdout.count(", missing in 1 rows") == 2 and "the rarest, Good, or so, in 1 rows" in made.stdout


@pytest.mark.parametrize("names", [["one"] * 4, [f"name {i}" for i in range(1001)]], ids=["one", "many"])
def test_one_class_or_too_many_are_refused(names, tmp_path):
    lines = [f"{i},{name}" for i, name in enumerate(names)]
    write_files(tmp_path, {"train/a.csv": "\n".join(["x,y", *lines]) + "\n"})
    made = run_make_vocabulary(tmp_path, "--train", "train", "--dense", "x", "--labels", "y", "--out", "v.json")
    assert made.returncode == 2 and f"the column y has {len(set(names))} different texts" in made.stderr


@pytest.mark.parametrize(
    "content,words",
    [("x,y\n1,yes\n2,no\n", "column y has no numbers"), ("x,y\n1\n", "line 2: it has 1 columns, not 2")],
)
def test_bad_rows_are_skipped_and_named_if_none_is_left(content, words, tmp_path):
    write_files(tmp_path, {"train/a.csv": content})
    arguments = ["--train", "train", "--sparse", " x ", "--dense", "y", "--skip-bad-rows", "--out", "v.json"]
    made = run_make_vocabulary(tmp_path, *arguments)
    assert made.returncode == 2 and "all rows are bad" in made.stderr and words in made.stderr
    (tmp_path / "train" / "a.csv").write_text(content + "1,0\n")
    made = run_make_vocabulary(tmp_path, *arguments)
    assert printed(made)["input"] == {"dense_size": 1, "vocabulary_sizes": [2]}  # one row is left
    assert "bad rows were skipped, the first: " in made.stdout


def test_a_vocabulary_of_categories_alone_is_made(mixed):
    """In a process of its own, in which nothing else has imported what it needs of pyarrow."""
    arguments = ["--train", "train", "--sparse", "shop", "--out", "v.json"]
    made = run_make_vocabulary(mixed.folder, *arguments, env=os.environ)
    assert made.returncode == 0, made.stderr
    values = json.loads((mixed.folder / "v.json").read_text())["categories"][0]["values"]
    assert values == mixed.categories[SPARSE.index("shop")]["values"]


def test_a_label_that_the_terminal_cannot_show_reads_back(tmp_path):
    write_files(tmp_path, {"train/a.csv": "x,да\n1,0\n2,1\n"})
    arguments = ["--train", "train", "--dense", "x", "--labels", "да", "--out", "v.json"]
    made = run_make_vocabulary(tmp_path, *arguments, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert printed(made)["tasks"] == [{"name": "да", "kind": "binary"}]


def test_numbers_too_far_apart_for_a_variance_are_refused(tmp_path):
    write_files(tmp_path, {"train/a.csv": "x\n" + "0\n" * 200 + "1e300\n" + "0\n" * 200})
    made = run_make_vocabulary(tmp_path, "--train", "train", "--dense", "x", "--out", "v.json")
    assert made.returncode == 2
    assert made.stderr == "error: the numbers of x reach 1e+300: too far apart for a variance.\n"
    assert not (tmp_path / "v.json").exists()


# -------------------------------------------------------------------------------- report, first config


def test_the_report_warns_of_columns_that_cannot_help(tmp_path):
    rng = np.random.RandomState(3)
    lines = []
    for i in range(300):
        price, kind = rng.rand(), rng.choice(["a", "b"])
        lines.append(f"{price:.4f},5,{i}x,{kind},only,{price:.4f},{kind},{rng.randint(2)}")
    columns = ["price", "constant", "row", "kind", "same", "spent", "kind_again", "buys"]
    write_files(tmp_path, {"train/a.csv": "\n".join([",".join(columns), *lines]) + "\n"})
    made = run_make_vocabulary(
        tmp_path, "--train", "train", "--dense", "price", "constant", "--sparse", "row", "kind", "same",
        "--labels", "spent", "kind_again", "buys", "--out", "v.json",
    )  # fmt: skip
    said = {line.split(":")[0].strip(): line for line in made.stdout.splitlines()}
    warnings = {name: re.findall("WARNING: [^,]*", said[name]) for name in columns[:5]}
    assert warnings["price"] == ["WARNING: it equals the label spent in every row; a model would only copy it"]
    assert warnings["kind"] == ["WARNING: it equals the label kind_again in every row; a model would only copy it"]
    assert warnings["constant"] == warnings["same"] == ["WARNING: a constant says nothing; leave it out"]
    assert len(warnings["row"]) == 1 and "an id of the row" in warnings["row"][0]
    assert "16 pieces" in said["price"] and "300 values, 300 with an id" in said["row"]


@pytest.mark.parametrize("validates", [True, False])
def test_a_first_config_is_one_that_the_tools_take(mixed, validates):
    columns = ["--dense", *DENSE, "--sparse", *SPARSE, "--labels", *LABELS, "--out", "new.json"]
    folders = ["--validation", "train", "--test", "train"] if validates else []
    (mixed.folder / "a b").mkdir()
    arguments = ["--train", "train", *folders, *columns, "--config", "a b/config.yaml"]
    made = run_make_vocabulary(mixed.folder, *arguments)
    assert made.returncode == 0, made.stderr
    written = (mixed.folder / "a b" / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(written)
    runner, hyper = config["runner"], config["hyper_parameters"]
    assert runner["train_data_dir"] == "../train" and runner["vocabulary"] == "../new.json"
    assert runner.get("infer_epoch") == ("best" if validates else runner["epochs"] - 1)
    assert [task["name"] for task in hyper["tasks"]] == LABELS
    flat = {f"hyper_parameters.{key}": value for key, value in hyper.items() if key not in ("input", "optimizer")}
    for section in ("input", "optimizer"):
        flat.update({f"hyper_parameters.{section}.{key}": value for key, value in hyper[section].items()})
    assert [runner[key] for key in ("model_save_path", "infer_load_path")] == ["a b/output"] * 2
    assert [runner[key] for key in ("export_path", "predict_path")] == ["a b/exported", "a b/predictions.csv"]
    HyperParameters.from_config(flat)
    Vocabulary(str(mixed.folder / "new.json")).check_config(flat)
    again = run_make_vocabulary(mixed.folder, *arguments)
    assert again.returncode == 2 and "a b/config.yaml is there already" in again.stderr
    assert (mixed.folder / "a b" / "config.yaml").read_text(encoding="utf-8") == written


def test_a_first_config_trains_some_3000_steps():
    for rows in (100, 4_999, 5_000, 20_000, 200_000, 10_000_000):
        chosen = first_config.advice(rows)
        steps = chosen.epochs * rows / chosen.batch_size
        assert 0.5 < steps / 3000 < 1.5 or chosen.epochs in (3, 40), rows


def test_an_option_that_is_given_twice_adds_columns(mixed):
    columns = [part for name in DENSE for part in ("--dense", name)]
    columns += [part for name in DENSE for part in ("--encode", f"{name}=plain")]
    made = run_make_vocabulary(mixed.folder, "--train", "train", *columns, "--out", "new.json")
    assert made.returncode == 0, made.stderr
    entries = json.loads((mixed.folder / "new.json").read_text())["numbers"]
    assert [entry["column"] for entry in entries] == DENSE and not any("edges" in entry for entry in entries)


def test_a_missing_folder_is_named(mixed):
    made = run_make_vocabulary(mixed.folder, "--train", "trian", "--dense", *DENSE, "--out", "new.json")
    assert made.returncode == 2 and made.stderr == "error: --train: there is no folder trian.\n"
