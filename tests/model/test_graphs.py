"""The static graph equals the dynamic graph: same start, batches, parameters, running statistics and metrics.

In float64: see support/rounding.py. Every gate, and every optimizer, have tests of their own of this.
"""

import numpy as np
import pytest

from engine.errors import UserError
from support.examples import SMALL
from support.rounding import ADAM, SUMS, assert_near
from support.toolbox import opened
from support.ways import (
    LEGACY_3,
    assert_steps_agree,
    code_logits,
    config,
    gate_values,
    is_running_statistic,
    make_batches,
    start,
)

pytestmark = pytest.mark.usefixtures("float64")
SIDE = 16
OF_IMAGES = {**SMALL, "input__image": [1, SIDE, SIDE], "optimizer__gate_learning_rate_factor": 3.0}
CASES = {
    "cnn bottom, no power of two": {
        "bottom": "cnn", "gate": "dselect_k_per_example", "expert_num": 5, "entropy_weight": 0.01,
    },
    "mlp bottom, three tasks": {
        "bottom": "mlp", "bottom_sizes": [20, 16], "task_num": 3, "task_weights": [1.0, 0.5, 2.0], "top_k": 3,
    },
    "a single expert": {"expert": "mlp", "expert_num": 1, "top_k": 1},
}  # fmt: skip


def assert_equal_state(dynamic, static, tolerance):
    """Parameters and running statistics; a legacy program of 3.x runs all experts, which changes theirs."""
    assert dynamic.names == static.names
    ours, theirs = dynamic.state(), static.state()
    for key, name in dynamic.names.items():
        if not (LEGACY_3 and is_running_statistic(key)):
            assert_near(ours[name], theirs[name], tolerance, key)


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_both_graphs_train_alike(keys, rng):
    flat = config(**{**OF_IMAGES, **keys})
    dynamic, static = start("eager", flat), start("static", flat)
    assert_equal_state(dynamic, static, 0)
    before = dynamic.state()
    batches = make_batches(rng, 6, task_num=keys.get("task_num", 2), side=SIDE)
    assert_steps_agree(dynamic, static, batches, ADAM)
    assert_equal_state(dynamic, static, ADAM)
    assert int(dynamic.state()[dynamic.names["step"]][0]) == 6
    for key, name in dynamic.names.items():
        alone = key.endswith("mixing_logits") and keys.get("top_k") == 1  # softmax of one number
        if not key.startswith("experts.") and not alone:  # an expert may have been skipped
            assert (before[name] != dynamic.state()[name]).any(), f"{key} should have moved"


def test_both_graphs_agree_in_evaluation_which_changes_nothing(rng):
    """With running statistics of some steps, and one selector settled, the other at the edge of the band."""
    flat = config(**{**OF_IMAGES, "expert_norm": "batch"})
    dynamic, static = start("eager", flat), start("static", flat)
    logits = np.array(code_logits([1, 2], 2, 0.8))
    logits[1, 0] = 0.49
    dynamic.set(gate_values(dynamic, logits, [2.0, -2.0]))
    batches = make_batches(rng, 4, side=SIDE)
    for batch in batches:
        assert dynamic.step(batch)[1] < 4
    before = dynamic.state()
    static.set(before)
    for batch in batches[:2]:
        ours, theirs = dynamic.evaluate(batch), static.evaluate(batch)
        # shares of examples: no rounding brings the scores of noise into another order
        assert ours[0] == pytest.approx(theirs[0], rel=1e-6) and ours[1] == pytest.approx(theirs[1], abs=SUMS)
        assert_near(ours[2], theirs[2], SUMS)
    for run in (dynamic, static):
        assert all((value == run.state()[name]).all() for name, value in before.items())


ONE_EXPERT = [f"hyper_parameters.{key}" for key in ("expert=mlp", "expert_num=1", "top_k=1", "expert_size=8")]


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_both_graphs_refuse_a_class_that_does_not_exist(graph, rng):
    batch = make_batches(rng, 1)[0]
    batch[1][4] = 10
    overrides = [*ONE_EXPERT, "runner.to_static=false", "runner.steps_per_epoch=3"]
    with opened(graph, "train", overrides) as (opened_graph, _, _):
        opened_graph.begin_epoch()
        with pytest.raises(UserError, match="label of task 1 is 10"):
            opened_graph.train_step(batch)


def test_a_static_warm_start_takes_over_the_optimizers_state_if_it_is_the_same(tmp_path, rng, caplog):
    """As PaddleRec's static trainer does: Adam's moments do not begin at zero."""
    with opened("static", "train", ONE_EXPERT) as (graph, _, _):
        graph.begin_epoch()
        fresh = graph._state("opt")
        for batch in make_batches(rng, 2):
            graph.train_step(batch)
        graph.write(str(tmp_path))
        saved = graph._state("opt")
    overrides = [*ONE_EXPERT, f"runner.model_init_path={tmp_path}", "hyper_parameters.optimizer.learning_rate=0.125"]
    with opened("static", "train", overrides) as (graph, _, _):
        taken = graph._state("opt")
    assert taken.pop("learning_rate_0") == 0.125 != saved.pop("learning_rate_0")
    assert taken.keys() == saved.keys() and any((fresh[name] != saved[name]).any() for name in saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(taken[name], value, name)
    momentum = ["hyper_parameters.optimizer.class=sgd", "hyper_parameters.optimizer.momentum=0.5"]
    with opened("static", "train", [*overrides, *momentum]) as (graph, _, _):
        velocities = [value for name, value in graph._state("opt").items() if "velocity" in name]
        assert velocities and not np.any(np.concatenate([value.flatten() for value in velocities]))
    assert "rec_static.pdopt: not used, it is the state of another optimizer" in caplog.text
