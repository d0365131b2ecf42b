"""Optimizers that move just the embeddings of a batch's ids: which those are, and by how much."""

import numpy as np
import pytest
from toolbox import opened
from ways import config, start

from engine.errors import UserError

FIELDS = {"input__dense_size": 2, "input__vocabulary_sizes": [50, 60], "input__embedding_size": 3}
NETWORK = {"expert_num": 4, "expert_size": 8, "tower_size": 8, "expert_norm": "none", "tasks": [{"kind": "binary"}]}
SGD = {"optimizer__class": "sgd", "optimizer__momentum": 0.0}
LAZY = {"optimizer__class": "lazy_adam", "optimizer__learning_rate": 0.01}
EMBEDDING = "inputs.embedding.weight"


def batches(rng, number, size=6):
    """An id comes more than once in some."""
    return [
        [rng.randn(size, 2).astype("float32"), rng.randint(0, [50, 60], [size, 2]), rng.rand(size).round()]
        for _ in range(number)
    ]


def rows_of(batch):
    """The embeddings' rows that a batch reads: the second field's stand behind the first's."""
    return np.unique(batch[1] + [0, 50])


def table(run):
    return run.state()[run.names[EMBEDDING]]


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_plain_sgd_has_gradients_of_the_rows_alone_and_they_are_those_of_a_program(clip_norm, rng):
    flat = config(**FIELDS, **NETWORK, **SGD, optimizer__learning_rate=0.5, optimizer__clip_norm=clip_norm)
    ours, program = start("eager", flat), start("static", flat)
    for batch in batches(rng, 5):
        before = table(ours)
        assert ours.step(batch)[0] == pytest.approx(program.step(batch)[0], abs=1e-6)
        assert np.flatnonzero((table(ours) != before).any(axis=1)).tolist() == rows_of(batch).tolist()
        assert ours.net.inputs.embedding.weight.grad.is_selected_rows()
    for name, value in program.state().items():
        np.testing.assert_allclose(ours.state()[name], value, atol=1e-6, err_msg=name)


def test_sgd_with_momentum_or_decay_has_dense_gradients(rng):
    for keys in ({"optimizer__momentum": 0.9}, {"optimizer__weight_decay": 0.1}):
        run = start("eager", config(**{**FIELDS, **NETWORK, **SGD, **keys}))
        run.step(batches(rng, 1)[0])
        assert not run.net.inputs.embedding.weight.grad.is_selected_rows()


def test_lazy_adam_is_the_formula_over_the_rows_and_the_others_stand_still(rng):
    """Gradients are those of plain SGD at rate 1 with the same weights."""
    keys = {**FIELDS, **NETWORK, "entropy_weight": 0.0}
    lazy, sgd = (
        start("eager", config(**keys, **LAZY)),
        start("eager", config(**keys, **SGD, optimizer__learning_rate=1.0)),
    )
    expected, first, second = table(lazy).astype(float), np.zeros([110, 3]), np.zeros([110, 3])
    for t, batch in enumerate(batches(rng, 8), start=1):
        sgd.set(lazy.state())
        sgd.step(batch)
        gradient, rows = table(lazy).astype(float) - table(sgd), rows_of(batch)
        before = table(lazy)
        lazy.step(batch)
        first[rows] = 0.9 * first[rows] + 0.1 * gradient[rows]
        second[rows] = 0.999 * second[rows] + 0.001 * gradient[rows] ** 2
        # plain Adam has t for t + 1 in both
        size = 0.01 * np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        expected[rows] -= size * first[rows] / (np.sqrt(second[rows]) + 1e-8 * np.sqrt(1 - 0.999 ** (t + 1)))
        np.testing.assert_allclose(table(lazy), expected, atol=1e-4)
        others = np.setdiff1d(np.arange(110), rows)
        assert (table(lazy)[others] == before[others]).all()


def test_lazy_adam_is_plain_adam_for_all_other_parameters(rng):
    lazy, plain = (
        start("eager", config(**FIELDS, **NETWORK, **LAZY)),
        start("eager", config(**FIELDS, **NETWORK, optimizer__learning_rate=0.01)),
    )
    batch = batches(rng, 1)[0]
    lazy.step(batch), plain.step(batch)
    for key, name in lazy.names.items():
        assert (lazy.state()[name] == plain.state()[name]).all() == (key != EMBEDDING), key


def test_lazy_adam_goes_on_from_a_save_as_if_uninterrupted(rng, tmp_path):
    flat = config(**FIELDS, **NETWORK, **LAZY)
    whole, run = start("eager", flat), start("eager", flat)
    for i, batch in enumerate(batches(rng, 6)):
        whole.step(batch)
        run = run.reopened(tmp_path) if i == 3 else run
        run.step(batch)
    assert all((run.state()[name] == value).all() for name, value in whole.state().items())


TABLE = ["hyper_parameters.input.dense_size=2", "hyper_parameters.input.vocabulary_sizes=[50, 60]"]
LAZY_CLASS, LINE_BY_LINE = "hyper_parameters.optimizer.class=lazy_adam", "runner.to_static=false"


@pytest.mark.parametrize(
    "graph,keys,words",
    [
        ("static", TABLE, "line by line.*trainer.py"), ("dynamic", [*TABLE, "runner.to_static=true"], "line by line"),
        ("dynamic", [LINE_BY_LINE], "vocabulary_sizes"),
        ("dynamic", [*TABLE, LINE_BY_LINE, "hyper_parameters.optimizer.weight_decay=0.1"], "weight_decay"),
    ],
    ids=["a program", "a compiled network", "no embeddings", "decay"],
)  # fmt: skip
def test_lazy_adam_is_refused_where_it_cannot_be(graph, keys, words):
    with pytest.raises(UserError, match=words), opened(graph, "train", [LAZY_CLASS, "runner.steps_per_epoch=3", *keys]):
        pass
