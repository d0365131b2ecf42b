"""Lists of ids, and features that share their embeddings: net.TableInput in every way to run it."""

import numpy as np
import paddle
import pytest

import net
from dselect_k_model.hyper_parameters import HyperParameters
from support.rounding import SUMS, assert_close, assert_near
from support.ways import assert_steps_agree, config, start

pytestmark = pytest.mark.usefixtures("float64")  # see support/rounding.py
NETWORK = {
    "input__dense_size": 2, "input__vocabulary_sizes": [5, 7], "input__list_sizes": [9, 7], "input__embedding_size": 3,
    "input__list_pooling": ["mean", "sum"], "input__shared_embeddings": [[1, 3]], "expert_num": 4, "expert_size": 8,
    "tower_size": 8, "expert_norm": "none", "tasks": [{"kind": "binary"}],
}  # fmt: skip
LAZY = {"optimizer__class": "lazy_adam", "optimizer__learning_rate": 0.01}


def make_list(rng, size, ids, longest):
    """Lists of up to ``longest`` ids, the first one empty: [size, longest], -1 after their ends."""
    lengths = np.array([0, *rng.randint(0, longest + 1, size - 1)])
    return np.where(np.arange(longest) < lengths[:, None], rng.randint(ids, size=[size, longest]), -1)


def make_batch(rng, size=6, longest=4):
    ids = rng.randint(0, [5, 7], [size, 2])
    lists = [make_list(rng, size, 9, longest), make_list(rng, size, 7, 2 * longest)]
    return [rng.randn(size, 2), ids, *lists, rng.rand(size).round()]


def pooled(table, ids, pooling):
    """By the definition, a list at a time."""
    found = []
    for row in ids:
        vectors = [table[i] for i in row if i >= 0]
        total = sum(vectors, np.zeros(table.shape[1]))
        found.append(total / len(vectors) if vectors and pooling == "mean" else total)
    return np.array(found)


def test_lists_are_pooled_by_the_definition_and_features_share_a_table(rng):
    hyper = {"vocabulary_sizes": [5, 7], "list_sizes": [9, 7], "list_pooling": ["mean", "sum"]}
    layer = net.TableInput(2, embedding_size=3, shared_embeddings=[[1, 3]], **hyper)
    table = layer.embedding.weight.numpy()
    assert table.shape == (5 + 7 + 9, 3) and layer.out_size == 2 + 4 * 3
    batch = make_batch(rng)[:4]
    dense, ids, *lists = batch
    expected = [dense, table[ids[:, 0]], table[5 + ids[:, 1]]]
    expected += [pooled(table[12:], lists[0], "mean"), pooled(table[5:12], lists[1], "sum")]
    found = layer(*map(paddle.to_tensor, batch)).numpy()
    assert_near(found, np.concatenate(expected, axis=1), SUMS)
    assert (found[0, -6:] == 0).all()  # the lists of the first example are empty


def test_the_embedding_of_what_is_not_there_has_no_gradient(rng):
    layer = net.TableInput(0, embedding_size=3, list_sizes=[9])
    ids = np.array([[4, -1, -1], [2, 4, -1]])
    layer(paddle.to_tensor(ids)).sum().backward()
    gradient = layer.embedding.weight.grad.numpy()
    assert_near(gradient[[2, 4]], np.array([[0.5] * 3, [1.5] * 3]), SUMS)
    assert (np.delete(gradient, [2, 4], axis=0) == 0).all()


@pytest.mark.parametrize("way", ["static", "to_static"])
@pytest.mark.parametrize(
    "keys", [{}, {"input__dense_size": 0}, {"input__vocabulary_sizes": [], "input__shared_embeddings": []}]
)
def test_graphs_agree_on_batches_of_different_lengths(way, keys, rng):
    flat = config(**{**NETWORK, **keys}, optimizer__learning_rate=0.01)
    ours, theirs = start("eager", flat), start(way, flat)
    batches = [make_batch(rng, longest=longest) for longest in (4, 1, 6)]
    for batch in batches:
        if not flat["hyper_parameters.input.vocabulary_sizes"]:
            del batch[1]
        if not flat["hyper_parameters.input.dense_size"]:
            del batch[0]
    assert_steps_agree(ours, theirs, batches, SUMS)
    assert_close(ours.state(), theirs.state(), SUMS)


def test_longer_padding_changes_nothing(rng):
    run, batch = start("eager", config(**NETWORK)), make_batch(rng)
    longer = [np.pad(x, [(0, 0), (0, 3)], constant_values=-1) if i in (2, 3) else x for i, x in enumerate(batch)]
    assert_near(run.evaluate(longer)[2], run.evaluate(batch)[2], SUMS)


def test_lazy_adam_moves_only_the_ids_of_a_batch(rng):
    run = start("eager", config(**NETWORK, **LAZY))
    for batch in (make_batch(rng) for _ in range(4)):
        name = run.names["inputs.embedding.weight"]
        before = run.state()[name]
        run.step(batch)
        moved = set(np.flatnonzero((run.state()[name] != before).any(axis=1)))
        _, ids, *lists, _ = batch
        places = zip((0, 5, 12, 5), (ids[:, 0], ids[:, 1], *lists))
        in_batch = {begin + i for begin, column in places for i in column[column >= 0].ravel()}
        assert moved <= in_batch and len(moved) > len(in_batch) / 2
        assert run.net.inputs.embedding.weight.grad.is_selected_rows()


WRONG = {
    "a pooling": ({"input.list_pooling": ["max", "sum"]}, "list_pooling is .'max', 'sum'., but must have mean or sum"),
    "too few poolings": ({"input.list_pooling": ["sum"]}, "for each of the 2 features"),
    "one feature": ({"input.shared_embeddings": [[1]]}, "at least two features"),
    "no such feature": ({"input.shared_embeddings": [[1, 4]]}, "features 0 to 3 have .5, 7, 9, 7. ids"),
    "other sizes": ({"input.shared_embeddings": [[0, 1]]}, "with the same number of ids"),
    "true": ({"input.shared_embeddings": [[True, 3]]}, "at least two features"),
    "a feature twice": ({"input.shared_embeddings": [[1, 3], [3, 1]]}, "names a feature twice"),
    "shared out": ({"input.shard_embedding": True}, "lists of ids are not shared out"),
}


@pytest.mark.parametrize("keys,words", WRONG.values(), ids=WRONG)
def test_keys_that_do_not_fit_are_refused(keys, words):
    flat = {**config(**NETWORK), **{f"hyper_parameters.{key}": value for key, value in keys.items()}}
    with pytest.raises(ValueError, match=words):
        HyperParameters.from_config(flat)


@pytest.mark.parametrize("bad", [-2, 9])
def test_an_id_out_of_range_in_a_list_is_refused(bad, rng):
    batch = make_batch(rng)
    batch[2][3, 1] = bad
    with pytest.raises(ValueError, match=f"example 3 of a batch has the id {bad} in list 0, whose ids are 0 to 8"):
        HyperParameters.from_config(config(**NETWORK)).check_batch(batch)
