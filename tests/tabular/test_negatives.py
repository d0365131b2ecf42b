"""negatives_kept: which negatives an epoch keeps, and that predictions are those of all."""

import numpy as np
import paddle
import pytest
import yaml

from dselect_k_model.kinds import KINDS
from support import ROOT
from support.tables import Folder, make_rows, run_make_vocabulary, write_files
from support.toolbox import run_here
from tabular import negatives
from tabular import reader as table_reader

BINARY, CLASSES = KINDS["binary"], KINDS["classes"]


def test_each_tasks_negatives_are_drawn_and_rows_without_a_label_left_are_out():
    rng = np.random.default_rng(3)
    click, buy = (np.where(rng.random(20_000) < 0.2, np.nan, rng.integers(0, 2, 20_000)) for _ in range(2))
    kinds, labels = [BINARY(negatives_kept=0.25), BINARY()], [click.astype("float32"), buy.astype("float32")]
    (found, same), is_out = negatives.leave_out(labels, kinds, np.random.default_rng(1))
    np.testing.assert_array_equal(same, labels[1])
    was_negative = labels[0] == 0
    np.testing.assert_array_equal(found[~was_negative], labels[0][~was_negative])
    assert set(found[was_negative].tolist()) - {0.0} and np.isnan(found[was_negative & (found != 0)]).all()
    number = was_negative.sum()  # a binomial: five deviations
    assert (found == 0).sum() == pytest.approx(0.25 * number, abs=5 * (0.25 * 0.75 * number) ** 0.5)
    np.testing.assert_array_equal(is_out, was_negative & np.isnan(found) & np.isnan(buy))
    assert negatives.expected(labels, kinds) == pytest.approx((0.75 * was_negative * np.isnan(buy)).sum())
    assert is_out.sum() == pytest.approx(negatives.expected(labels, kinds), rel=0.1)


def test_rows_that_never_had_a_label_stay():
    kinds, labels = (
        [BINARY(negatives_kept=0.01), CLASSES(classes=3)],
        [np.float32([0, np.nan, 0]), np.int64([-1, -1, 2])],
    )
    _, is_out = negatives.leave_out(labels, kinds, np.random.default_rng(0))
    assert is_out.tolist() == [True, False, False]
    assert negatives.expected(labels, kinds) == pytest.approx(0.99)


def test_training_sees_the_odds_of_what_is_kept():
    """With p = 0.2 of all and a fifth of the negatives, p is 0.2 / (0.2 + 0.16) among those that are kept."""
    logit = paddle.to_tensor([[float(np.log(0.2 / 0.8))]])
    seen = BINARY(negatives_kept=0.2).for_training(logit)
    assert paddle.nn.functional.sigmoid(seen).item() == pytest.approx(0.2 / 0.36)


@pytest.fixture
def folder(tmp_path, rng):
    rows = [[*row[:5], str(int(rng.rand() < 0.1)), row[6]] for row in make_rows(rng, 400)]
    return Folder(tmp_path, ["a.csv", "b.parquet"], rows)


def epochs(folder, workers=0):
    """Batches of two epochs."""
    config = folder.config()
    config["hyper_parameters.tasks"] = [{"kind": "classes", "classes": 3}, {"kind": "binary", "negatives_kept": 0.1}]

    def make():
        return table_reader.RecDataset(sorted(map(str, (folder.folder / "train").iterdir())), config)

    return [list(folder.batches(make(), workers=workers, shuffle=True)(epoch)) for epoch in (0, 1)]


def test_epochs_draw_anew_and_alike_in_workers(folder):
    (first, second), (same, _) = epochs(folder), epochs(folder, workers=2)
    assert all(np.array_equal(a, b, equal_nan=True) for one, two in zip(first, same) for a, b in zip(one, two))
    counts = [sum(int((batch[3] == 0).sum()) for batch in of_epoch) for of_epoch in (first, second)]
    positives = [sum(int((batch[3] == 1).sum()) for batch in of_epoch) for of_epoch in (first, second)]
    assert positives[0] == positives[1] == sum(row[5] == "1" for row in folder.rows)
    assert counts != [sum(row[5] == "0" for row in folder.rows)] * 2 and max(counts) < 90 and counts[0] != counts[1]


def test_predictions_are_calibrated_for_all_rows(tmp_path):
    """A model that learns the share of positives alone: its mean prediction is that share, not that of what it kept."""
    rng = np.random.RandomState(0)
    lines = [f"a,{int(rng.rand() < 0.1)}" for _ in range(8000)]
    for part in ("train", "test"):
        write_files(tmp_path, {f"{part}/a.csv": "\n".join(["c,click", *lines]) + "\n"})
    columns = ["--sparse", "c", "--labels", "click", "--out", "v.json", "--config", "config.yaml", "--test", "test"]
    assert run_make_vocabulary(tmp_path, "--train", "train", *columns).returncode == 0
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["hyper_parameters"]["tasks"][0]["negatives_kept"] = 0.2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    process = run_here("trainer", tmp_path / "config.yaml", "runner.epochs=12", "runner.infer_epoch=11", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "of 8000 rows, negatives_kept leaves some " in process.stderr
    done = run_here("infer", tmp_path / "config.yaml", "runner.infer_epoch=11", cwd=tmp_path)
    share = np.mean([line.endswith("1") for line in lines])
    best = -(share * np.log(share) + (1 - share) * np.log(1 - share))  # the log-loss of that share
    (loss,) = {
        float(line.split("logloss_click: ")[1].split(",")[0]) for line in done.stderr.splitlines() if "done, " in line
    }
    assert loss == pytest.approx(best, abs=0.003)  # at the share of what is kept it is 0.14 more


def test_another_reader_is_refused(tmp_path):
    tasks = "hyper_parameters.tasks=[{classes: 10}, {kind: binary, negatives_kept: 0.1}]"
    process = run_here("trainer", ROOT / "config.yaml", tasks, cwd=tmp_path)
    assert process.returncode == 2 and "only the reader tabular.reader draws the negatives" in process.stderr


def test_a_block_without_a_row_leaves_out_none():
    kinds, labels = [BINARY(negatives_kept=0.1), CLASSES(classes=3)], [np.zeros(0, "float32"), np.zeros(0, "int64")]
    _, is_out = negatives.leave_out(labels, kinds, np.random.default_rng(0))
    assert is_out.shape == (0,) and negatives.expected(labels, kinds) == 0
