"""A package on tables under the tools: training, predictions, the vocabulary that belongs to a checkpoint."""

import csv
import io
import json
import re
import time

import numpy as np
import pytest
import yaml

from support import processes, resuming
from support.tables import COLUMNS, DENSE, HEAD, LABELS, SPARSE, TASKS, Folder, make_rows, run_make_vocabulary, write
from support.toolbox import assert_refused, run_here


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a config, data, a checkpoint of one epoch and its export."""
    path = tmp_path_factory.mktemp("package")
    rng = np.random.RandomState(5)
    folder = Folder(path, ["a.csv", "b.parquet"], make_rows(rng, 120))
    write(path / "test" / "a.csv", make_rows(rng, 30))
    runner = {
        "train_data_dir": "train", "test_data_dir": "test", "train_reader_path": "tabular.reader",
        "infer_reader_path": "tabular.reader", "vocabulary": "vocabulary.json", "shuffle": True, "strict": True,
        "epochs": 1, "train_batch_size": 10, "infer_batch_size": 20, "print_interval": 100, "infer_end_epoch": 1,
        "model_save_path": "output", "infer_load_path": "output",
    }  # fmt: skip
    hyper = {
        "input": {"dense_size": 2, "vocabulary_sizes": folder.config()["hyper_parameters.input.vocabulary_sizes"]},
        "tasks": [*TASKS[:2], {**TASKS[2], "log": True, "mean": 0.4, "deviation": 0.2}],
        "expert_num": 2, "optimizer": {"schedule": "one_cycle"},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump({"runner": runner, "hyper_parameters": hyper}))
    for tool in ("trainer", "export"):
        process = run_here(tool, path / "config.yaml", cwd=path)
        assert process.returncode == 0, process.stderr
    return path


def predictions(package, rows, columns, *overrides):
    """What predict.py writes for rows with some of the columns."""
    for old in (package / "serve").glob("*"):
        old.unlink()
    write(package / "serve" / "a.csv", rows, columns)
    process = run_here("predict", package / "config.yaml", "runner.test_data_dir=serve", *overrides, cwd=package)
    assert process.returncode == 0, process.stderr
    with open(package / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_without_labels_and_with_unknown_values_are_predicted(package, rng):
    rows = make_rows(rng, 30)
    whole = predictions(package, rows, COLUMNS)
    assert [row["index"] for row in whole] == [str(i) for i in range(30)]
    assert [row["label_spent"] for row in whole] == [f"{float(row[6]):.7g}" if row[6] else "nan" for row in rows]
    without = predictions(package, [row[:4] for row in rows], COLUMNS[:4])
    assert list(without[0]) == [name for name in whole[0] if not name.startswith("label_")]
    assert without == [{name: row[name] for name in without[0]} for row in whole]
    unknown = predictions(package, [[*row[:2], "", row[3]] for row in rows], COLUMNS[:4])
    assert predictions(package, [[*row[:2], "nowhere", row[3]] for row in rows], COLUMNS[:4]) == unknown != without
    some = predictions(package, [[*row[:4], row[6]] for row in rows], [*COLUMNS[:4], "spent"])
    assert [row["label_spent"] for row in some] == [row["label_spent"] for row in whole]
    assert {row["label_rating"] for row in some} == {"-1"} and {row["label_bought"] for row in some} == {"nan"}


def test_infer_and_predict_have_the_same_metrics(package):
    """Names and values. Their kernels differ, in float32: some 1e-6 for a value of order 1."""
    done = []
    for tool in ("infer", "static_infer", "predict"):
        process = run_here(tool, package / "config.yaml", cwd=package)
        (line,) = [line for line in process.stderr.splitlines() if "epoch: 0 done, " in line]
        done.append({name: float(value) for name, value in re.findall(r"(\w+): ([-\d.]+),", line.split("done, ")[1])})
    for numbers in done[1:]:
        assert {**numbers, "experts_used": 2} == pytest.approx({**done[0], "experts_used": 2}, abs=1e-5)
    assert {"auc_bought", "logloss_bought", "rmse_spent", "mae_spent", "Accuracy_rating", "loss"} <= {*done[2]}


def test_infer_and_predict_print_nan_for_a_metric_without_labels(package, tmp_path):
    write(tmp_path / "a.csv", [["0.1", "0.2", "shop 1", "3", "2", "", "1.5"]], COLUMNS)
    for tool in ("infer", "static_infer", "predict"):
        process = run_here(tool, package / "config.yaml", f"runner.test_data_dir={tmp_path}", cwd=package)
        assert "auc_bought: nan," in process.stderr and "logloss_bought: nan," in process.stderr, process.stderr


def weighted_accuracy(table, rows):
    counted = [(p["label_rating"] == p["prediction_rating"], int(row[-2])) for p, row in zip(table, rows) if row[4]]
    right, weights = zip(*counted)
    return np.average(right, weights=weights)


def group_auc(table, rows):
    """Group by group and pair by pair."""
    aucs, sums = [], []
    for user in sorted({row[-1] for row in rows}):
        of_user = [
            (float(p["probability_bought"]), row[5], int(row[-2])) for p, row in zip(table, rows) if row[-1] == user
        ]
        pairs = [
            ((s > t) + 0.5 * (s == t), v * w)
            for s, yes, v in of_user
            if yes == "1"
            for t, no, w in of_user
            if no == "0"
        ]
        if pairs:
            aucs.append(sum(right * w for right, w in pairs) / sum(w for _, w in pairs))
            sums.append(sum(w for _, label, w in of_user if label))
    return np.average(aucs, weights=sums)


def test_weights_and_groups_reach_the_metrics_of_all_tools(tmp_path, rng):
    """From the raw files by make_vocabulary.py's own config; where the files lack the columns, predictions stay."""
    names = [*COLUMNS, "weight", "user"]
    rows = [[*row, f"{rng.randint(1, 4)}", f"user {rng.randint(9)}"] for row in make_rows(rng, 150)]
    for part, some in (("train", rows[:100]), ("test", rows[100:])):
        write(tmp_path / part / "a.csv", some, names)
    write(tmp_path / "serve" / "a.csv", [row[:4] for row in rows[100:]], COLUMNS[:4])
    arguments = ["--train", "train", "--dense", *DENSE, "--sparse", *SPARSE, "--labels", *LABELS, "--out", "v.json"]
    about = ["--weight", "weight", "--group", "user", "--test", "test", "--config", "config.yaml"]
    made = run_make_vocabulary(tmp_path, *arguments, *about)
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "config.yaml").read_text()
    assert "example_weights: true" in text and "{name: bought, kind: binary}" in text
    text = text.replace("kind: binary}", "kind: binary, metrics: [auc, gauc, ndcg_2, hit_rate_1]}")
    (tmp_path / "config.yaml").write_text(
        re.sub("epochs: .*", "epochs: 1", re.sub("infer_epoch: .*", "infer_epoch: 0", text))
    )

    def done(tool, *overrides):
        process = run_here(tool, tmp_path / "config.yaml", *overrides, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        found = re.search("epoch: 0 done, (.*), epoch time", process.stderr)
        return {} if found is None else dict(re.findall(r"(\w+): ([-\d.]+)", found[1]))

    done("static_trainer"), done("export")
    numbers = [done(tool) for tool in ("infer", "static_infer", "predict")]
    predicted = (tmp_path / "predictions.csv").read_text()
    for found in numbers:
        ours, theirs = ({n: float(v) for n, v in of.items() if n != "experts_used"} for of in (found, numbers[0]))
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert {"gauc_bought", "ndcg_2_bought", "hit_rate_1_bought"} <= {*numbers[0]}
    table = list(csv.DictReader(io.StringIO(predicted)))
    assert float(numbers[0]["Accuracy_rating"]) == pytest.approx(weighted_accuracy(table, rows[100:]), abs=1e-6)
    assert float(numbers[0]["gauc_bought"]) == pytest.approx(group_auc(table, rows[100:]), abs=1e-6)
    write(tmp_path / "labelled" / "a.csv", [row[:-2] for row in rows[100:]], COLUMNS)
    assert done("predict", "runner.test_data_dir=labelled") == {}, "metrics would not be those of an evaluation"
    assert (tmp_path / "predictions.csv").read_text() == predicted
    assert done("predict", "runner.test_data_dir=serve") == {}
    lines = [line.split(",") for line in predicted.splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if not name.startswith("label_")]
    assert (tmp_path / "predictions.csv").read_text() == "".join(
        ",".join(line[i] for i in kept) + "\n" for line in lines
    )


def test_predictions_of_an_earlier_run_are_named_when_a_run_fails(package, tmp_path):
    rows = [["0.1", "0.2", "shop 1", "3"]]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.csv", rows, COLUMNS[:4])
    keys = [f"runner.test_data_dir={tmp_path / 'data'}", f"runner.predict_path={tmp_path / 'predictions.csv'}"]
    assert run_here("predict", package / "config.yaml", *keys, cwd=package).returncode == 0
    written = (tmp_path / "predictions.csv").read_bytes()
    write(tmp_path / "data" / "b.csv", rows, ["other", *COLUMNS[1:4]])
    process = run_here("predict", package / "config.yaml", *keys, cwd=package)
    assert_refused(process, "b.csv")
    assert f"{tmp_path / 'predictions.csv'} is from an earlier run; this run wrote no predictions" in process.stderr
    assert (tmp_path / "predictions.csv").read_bytes() == written


@pytest.mark.parametrize("file", ["predictions.csv", "predictions.npz"])
def test_predictions_of_no_rows_replace_earlier_ones(package, file, tmp_path):
    before, today = tmp_path / "before", tmp_path / "today"
    for folder, rows in ((before, [["0.1", "0.2", "shop 1", "3"]]), (today, [])):
        folder.mkdir()
        write(folder / "a.csv", rows, COLUMNS[:4])
    keys = [f"runner.predict_path={tmp_path / file}"]
    made = []
    for folder in (before, today):
        process = run_here("predict", package / "config.yaml", f"runner.test_data_dir={folder}", *keys, cwd=package)
        assert process.returncode == 0, process.stderr
        made.append((tmp_path / file).read_bytes())
    assert f"{today} has no example: {tmp_path / file} has none either" in process.stderr
    if file.endswith(".csv"):
        assert made[1].decode() == made[0].decode().split("\n")[0] + "\n"
    else:
        arrays = [np.load(io.BytesIO(content)) for content in made]
        assert {n: a.shape[1:] for n, a in arrays[0].items()} == {n: a.shape[1:] for n, a in arrays[1].items()}
        assert len(arrays[1]["prediction_rating"]) == 0
    process = run_here("infer", package / "config.yaml", f"runner.test_data_dir={today}", cwd=package)
    assert_refused(process, today, "no column 'rating'")
    (today / "a.csv").write_text(HEAD)
    process = run_here("infer", package / "config.yaml", f"runner.test_data_dir={today}", cwd=package)
    assert_refused(process, today, "its files have no example")


@pytest.mark.parametrize(
    "tool,overrides",
    [
        ("infer", []),
        ("static_infer", []),
        ("export", []),
        ("predict", []),
        ("trainer", ["runner.resume=auto"]),
        ("trainer", ["runner.model_init_path=output/0", "runner.model_save_path=new"]),
        ("static_trainer", ["runner.model_init_path=output/0", "runner.model_save_path=new"]),
    ],
)
def test_weights_are_not_used_with_another_vocabulary(package, tool, overrides):
    other = json.loads((package / "vocabulary.json").read_text())
    other["categories"][0]["values"].reverse()
    (package / "other.json").write_text(json.dumps(other))
    refused = run_here(tool, package / "config.yaml", "runner.vocabulary=other.json", *overrides, cwd=package)
    words = ["exported/rec_inference.vocabulary.json"] if tool == "predict" else ["rec.pdparams"]
    assert_refused(refused, "trained with a different vocabulary.json", package / "other.json", *words)


def test_the_export_has_a_copy_of_the_vocabulary(package):
    copy = package / "exported" / "rec_inference.vocabulary.json"
    assert copy.read_bytes() == (package / "vocabulary.json").read_bytes()
    override = "runner.vocabulary=exported/rec_inference.vocabulary.json"
    assert run_here("predict", package / "config.yaml", override, cwd=package).returncode == 0
    assert run_here("infer", package / "config.yaml", override, cwd=package).returncode == 0
    manifest = json.loads((package / "output" / "0" / "manifest.json").read_text())
    assert list(manifest["encoding"]) == ["vocabulary.json"]


def test_a_checkpoint_without_a_vocabulary_is_evaluated_without_a_warning(package):
    path = package / "output" / "0" / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    try:
        path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "encoding"}))
        process = run_here("infer", package / "config.yaml", cwd=package)
        assert process.returncode == 0 and "vocabulary" not in process.stderr
        path.write_text(json.dumps({**manifest, "encoding": 3}))
        assert_refused(run_here("infer", package / "config.yaml", cwd=package), "its encoding is 3")
    finally:
        path.write_text(before)


def test_a_reader_that_declares_no_vocabulary_is_warned_of(package):
    (package / "silent_reader.py").write_text(
        "from tabular import reader as table_reader\n"
        "class RecDataset(table_reader.RecDataset):\n    encoding_files = None\n"
        "    def __init__(self, file_list, config):\n"
        "        type(self).encoding_files = staticmethod(table_reader.RecDataset.encoding_files)\n"
        "        super().__init__(file_list, config)\n"
        "        type(self).encoding_files = None\n"
    )
    process = run_here("infer", package / "config.yaml", "runner.infer_reader_path=silent_reader", cwd=package)
    assert process.returncode == 0 and "declares no such file" in process.stderr


def train(package, folder, *overrides):
    keys = ["runner.epochs=2", "runner.save_interval_steps=1", "runner.shuffle_window=25", "runner.print_interval=1"]
    log = folder / "log"
    return processes.start("trainer", ["-m", package / "config.yaml", "-o", *keys, *overrides], folder, log, log)


def test_a_killed_run_resumes_inside_an_epoch_to_the_same_bits(package, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    process = train(package, tmp_path / "killed", "runner.num_workers=2")
    log = tmp_path / "killed" / "log"
    log.touch()
    while process.poll() is None and "epoch: 1, batch_id: 3" not in log.read_text():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert train(package, tmp_path / "whole").wait() == 0
    assert train(package, tmp_path / "killed", "runner.resume=auto").wait() == 0, log.read_text()
    assert "resumed from" in log.read_text()
    assert not resuming.differences(resuming.state(tmp_path / "killed"), resuming.state(tmp_path / "whole"))
