"""Optimizers that update only the embeddings of a batch's ids: which those are, and by how much."""

import numpy as np
import pytest

from engine.errors import UserError
from support.rounding import ADAM, SUMS, assert_close, assert_near
from support.toolbox import opened
from support.ways import assert_steps_agree, config, start

pytestmark = pytest.mark.usefixtures("float64")  # see support/rounding.py
NETWORK = {
    "input__dense_size": 2, "input__vocabulary_sizes": [50, 60], "input__embedding_size": 3, "expert_num": 4,
    "expert_size": 8, "tower_size": 8, "expert_norm": "none", "tasks": [{"kind": "binary"}],
}  # fmt: skip
SGD = {"optimizer__class": "sgd", "optimizer__momentum": 0.0}
LAZY = {"optimizer__class": "lazy_adam", "optimizer__learning_rate": 0.01}
PLAIN = {"optimizer__class": "adam"}
EMBEDDING = "inputs.embedding.weight"


def batches(rng, number, size=6):
    """An id occurs more than once in some."""
    return [[rng.randn(size, 2), rng.randint(0, [50, 60], [size, 2]), rng.rand(size).round()] for _ in range(number)]


def rows_of(batch):
    """The rows of the table of embeddings that a batch reads: those of the second feature follow the first's."""
    return np.unique(batch[1] + [0, 50])


def table(run):
    return run.state()[run.names[EMBEDDING]]


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_plain_sgd_has_sparse_gradients_which_equal_those_of_a_program(clip_norm, rng):
    flat = config(**NETWORK, **SGD, optimizer__learning_rate=0.5, optimizer__clip_norm=clip_norm)
    ours, program = start("eager", flat), start("static", flat)
    for batch in batches(rng, 5):
        before = table(ours)
        assert_steps_agree(ours, program, [batch], SUMS)
        moved = np.flatnonzero((table(ours) != before).any(axis=1))
        # not every row moves: where all hidden units of an example are off, its gradient is exactly 0
        assert set(moved) <= set(rows_of(batch)) and len(moved) > len(rows_of(batch)) / 2
        assert ours.net.inputs.embedding.weight.grad.is_selected_rows()
    assert_close(ours.state(), program.state(), SUMS)


@pytest.mark.parametrize("keys", [{"optimizer__momentum": 0.9}, {"optimizer__weight_decay": 0.1}])
def test_sgd_with_momentum_or_decay_has_dense_gradients(keys, rng):
    run = start("eager", config(**{**NETWORK, **SGD, **keys}))
    run.step(batches(rng, 1)[0])
    assert not run.net.inputs.embedding.weight.grad.is_selected_rows()


def test_lazy_adam_is_the_formula_for_a_batchs_ids_and_leaves_the_others_as_they_are(rng):
    """Gradients are those of plain SGD at rate 1 with the same weights."""
    keys = {**NETWORK, "entropy_weight": 0.0}
    lazy, sgd = (
        start("eager", config(**keys, **LAZY)),
        start("eager", config(**keys, **SGD, optimizer__learning_rate=1)),
    )
    expected, first, second = table(lazy), np.zeros([110, 3]), np.zeros([110, 3])
    for t, batch in enumerate(batches(rng, 8), start=1):
        sgd.set(lazy.state())
        sgd.step(batch)
        gradient, rows = table(lazy) - table(sgd), rows_of(batch)
        before = table(lazy)
        lazy.step(batch)
        first[rows] = 0.9 * first[rows] + 0.1 * gradient[rows]
        second[rows] = 0.999 * second[rows] + 0.001 * gradient[rows] ** 2
        # plain Adam has t for t + 1 in both
        size = 0.01 * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        expected[rows] -= size * first[rows] / (np.sqrt(second[rows]) + 1e-8 * np.sqrt(1 - 0.999 ** (t + 1)))
        assert_near(table(lazy), expected, ADAM)  # a gradient that is the difference of two tables: noise of 1e-16
        others = np.setdiff1d(np.arange(110), rows)
        assert (table(lazy)[others] == before[others]).all()


def test_lazy_adam_is_plain_adam_for_all_other_parameters_and_continues_exactly_after_a_restart(rng, tmp_path):
    lazy, plain = start("eager", config(**NETWORK, **LAZY)), start("eager", config(**{**NETWORK, **LAZY, **PLAIN}))
    first, *others = batches(rng, 5)
    lazy.step(first), plain.step(first)
    for key, name in lazy.names.items():
        assert (lazy.state()[name] == plain.state()[name]).all() == (key != EMBEDDING), key
    again = lazy.reopened(tmp_path)
    for batch in others:
        lazy.step(batch), again.step(batch)
    assert_close(again.state(), lazy.state(), 0)


TABLE = ["hyper_parameters.input.dense_size=2", "hyper_parameters.input.vocabulary_sizes=[50, 60]"]


@pytest.mark.parametrize("graph,to_static,words", [("static", False, ".*trainer.py"), ("dynamic", True, "")])
def test_lazy_adam_needs_a_network_that_runs_line_by_line(graph, to_static, words):
    """(The other keys that it needs: tests/model/test_hyper_parameters.py.)"""
    overrides = [*TABLE, "hyper_parameters.optimizer.class=lazy_adam", f"runner.to_static={str(to_static).lower()}"]
    with pytest.raises(UserError, match=f"line by line{words}"):
        with opened(graph, "train", [*overrides, "runner.steps_per_epoch=3"]):
            pass
