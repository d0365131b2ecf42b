"""The benchmarks: their arithmetic, what they refuse, and that a table still runs from start to end."""

import json
import subprocess
import sys

import acceptance
import case as cases
import figures
import numpy as np
import paddle
import pytest
import workers
from conftest import ROOT
from stage import Disagreement, Stage

import net

TIMEOUT_S = 120


def test_multiplications_are_those_of_the_networks_layers():
    counts, first = [], []

    def count(layer, _, output):
        positions = np.prod(output.shape[2:]) if isinstance(layer, paddle.nn.Conv2D) else 1
        counts.append(int(np.prod(layer.weight.shape) * positions))
        if isinstance(layer, paddle.nn.Conv2D) and layer.weight.shape[1] == 1:
            first.append(counts[-1])

    network = net.MultiGateMixture(net.HyperParameters(expert_num=2, expert_size=7, tower_size=9))
    for layer in network.sublayers():
        if isinstance(layer, (paddle.nn.Conv2D, paddle.nn.Linear)):
            layer.register_forward_post_hook(count)
    network(paddle.rand([1, 1, 36, 36]))
    forward = sum(counts) + 2 * 2 * 7  # and for each task the mixture of two experts
    sizes = {"expert_size": 7, "tower_size": 9}
    assert figures.multiplications_per_example(2, training=False, **sizes) == forward
    assert figures.multiplications_per_example(2, **sizes) == 3 * forward - sum(first)


def test_spread_is_median_and_quartiles():
    assert figures.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3.0, 2.0, 4.0)
    assert figures.spread([7.0]) == (7.0, 7.0, 7.0)


def test_ratio_compares_within_a_round():
    """A machine that is ten times slower for a round changes neither the ratio nor its spread."""
    assert figures.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 2.0)


def test_acceptance_knows_both_senses_and_what_was_not_measured():
    measured = {"step static settled": 9.9, "step eager settled": 7.0, "growth static": 1.31, "growth eager": None}
    kept = dict(zip(acceptance.TARGETS, (row["kept"] for row in acceptance.rows(measured))))
    assert kept["step static settled"] is False and kept["step eager settled"] is True
    assert kept["growth static"] is False and kept["growth eager"] is None and kept["long run static"] is None


@pytest.mark.parametrize("wrong", ["logits0", "losses"])
def test_a_variant_that_computes_something_else_is_refused(wrong, tmp_path, rng):
    logits, losses = rng.rand(4, 10), np.array([4.6, 4.5])
    case = tmp_path / "case.npz"
    cases.write(case, {}, [0], [rng.rand(4), rng.rand(4)], [logits], losses, {})
    answers = {"logits0": logits, "losses": losses}
    stage = Stage(str(tmp_path))
    for name, allowed in (("right", True), ("wrong", False)):
        outputs = tmp_path / f"{name}.npz"
        np.savez(outputs, **answers)
        if allowed:
            stage.check(name, cases.Case(case), outputs)
        else:
            with pytest.raises(Disagreement, match="wrong"):
                stage.check(name, cases.Case(case), outputs)
        answers[wrong] = answers[wrong] + 0.01


def run_bench(*arguments, cwd):
    """The lines of JSON of a run at tiny sizes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "--small", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_table_runs_from_start_to_end(tmp_path):
    """In both graphs: cases, checks, turns and the lines of JSON."""
    machine, table, promised = run_bench("growth", cwd=tmp_path)
    assert "cpu" in machine["machine"]
    assert table["table"] == "growth" and table["difference"] < 1e-4
    assert {row["variant"] for row in table["rows"]} >= {"eager, 2 of 4", "static, 2 of 8", "eager, all of 4"}
    assert all(row["ms"][0] > 0 for row in table["rows"])
    measured = {row["figure"]: row["measured"] for row in promised["rows"]}
    assert measured[acceptance.TARGETS["growth eager"].figure] > 0


# table -> a variant of it
OTHERS = {
    "inference": "exported pruned",
    "rows_inference": "exported, rows routed",
    "rows_training": "to_static, rows routed",
    "reader": "engine's Batches",
    "start": "tools/static_trainer.py",
    "memory": "static, 2 of 4",
    "long_run": "static",
}


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="the figures are of Paddle 3")
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_tables_run(name, tmp_path):
    _, table, promised = run_bench(name, cwd=tmp_path)
    assert OTHERS[name] in {row["variant"] for row in table["rows"]}
    measured = [row for row in promised["rows"] if row["measured"] is not None]
    assert len(measured) == {"inference": 1, "reader": 1, "start": 0, "memory": 0, "long_run": 2}.get(name, 3)


def test_a_worker_that_ends_is_reported_and_one_that_fails_goes_on(tmp_path):
    with workers.Worker(workers.Settings(tuned=()), str(tmp_path)) as worker:
        with pytest.raises(workers.WorkerError, match="KeyError"):
            worker.ask("steps", name="none of this name", count=1)
        assert worker.ask("facts")["versions"]["numpy"] == np.__version__
        worker.process.kill()
        with pytest.raises(workers.WorkerError, match="ended"):
            worker.ask("facts")
    with pytest.raises(workers.Absent, match="no_such_python"):
        workers.Worker(workers.Settings(python="/no_such_python"), str(tmp_path))


def test_an_unknown_table_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "no_such_table"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2 and "no_such_table" in done.stderr
