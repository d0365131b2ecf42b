"""Softmax and top-k with the same weights for all examples: softmax over free logits, of all or of the k largest."""

import numpy as np
import paddle
import pytest

import net
from dselect_k_model.gates.shared import SharedGate
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import ADAM, SUMS, assert_close, assert_near
from support.ways import LEGACY_3, WAYS, assert_steps_agree, config, start, trained

pytestmark = pytest.mark.usefixtures("float64")
OF_TABLE = {**SMALL, **TABLE, "tasks": TASKS, "optimizer__learning_rate": 0.01}


def softmax_of_largest(logits, k):
    """The weights, and their Jacobian d p_i / d z_j, diag(p) - p p^T."""
    kept = np.argsort(-logits)[:k]
    p = np.zeros(len(logits))
    p[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    return p, np.diag(p) - np.outer(p, p)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_weights_and_their_slopes_are_those_of_a_softmax_over_the_k_largest(top_k, rng):
    gate = SharedGate(net.SoftmaxGate(5, 1) if top_k == 5 else net.TopKGate(5, top_k, 1))
    logits = rng.randn(5)
    gate.gate.weight.set_value(logits[None])
    p, jacobian = softmax_of_largest(logits, top_k)
    assert not gate.per_example and gate.penalties(gate()[1]) == {}
    for i in range(5):
        weights, _ = gate(paddle.to_tensor(rng.randn(7, 3)))  # of which it reads nothing
        assert_near(weights.numpy(), p, SUMS)
        gate.clear_gradients()
        weights[i].backward()
        slopes = gate.gate.weight.grad.numpy()[0]
        assert_near(slopes, jacobian[i], SUMS)
        assert (slopes[p == 0] == 0).all() and (weights.numpy()[p == 0] == 0).all()


def set_logits(run, logits):
    run.set({name: np.array([logits]) for key, name in run.names.items() if key.endswith("gate.weight")})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gate,used", [("softmax_shared", 4), ("top_k_shared", 2)])
def test_losses_and_parameters_are_those_of_the_dense_network(gate, used, way, rng):
    flat = config(**OF_TABLE, gate=gate)
    sparse, dense = start(way, flat), start("dense", flat)
    for run in (sparse, dense):
        set_logits(run, [2.0, -1.0, 1.5, -1.0])
    assert assert_steps_agree(sparse, dense, table_batches(rng, 3, missing=True), ADAM) == [used] * 3
    assert_close(trained(sparse), trained(dense), ADAM)


@pytest.mark.skipif(LEGACY_3, reason="its programs compute all experts")
@pytest.mark.parametrize("way", ["eager", "static"])
def test_an_expert_that_is_not_chosen_is_never_computed(way, rng):
    """Infinite outputs would reach the loss as 0 x inf."""
    run = start(way, config(**OF_TABLE, gate="top_k_shared"))
    set_logits(run, [2.0, -1.0, 1.5, -1.0])
    broken = {name for key, name in run.names.items() if key.startswith(("experts.1.", "experts.3."))}
    run.set({name: np.full_like(run.state()[name], np.inf) for name in broken})
    losses, used = zip(*[run.step(batch) for batch in table_batches(rng, 2)])
    assert used == (2, 2) and np.isfinite(losses).all()


@pytest.mark.parametrize("way", ["eager", "static"])
def test_training_continues_exactly_after_a_restart(way, rng, tmp_path):
    run = start(way, config(**OF_TABLE, gate="top_k_shared"))
    first, second = table_batches(rng, 2)
    run.step(first)
    again = run.reopened(tmp_path)
    run.step(second), again.step(second)
    assert_close(again.state(), run.state(), 0)  # the same operations on the same numbers
