"""The gate of customized gate control: a task's own experts and the shared ones."""

import numpy as np
import paddle
import pytest

from dselect_k_model import build
from dselect_k_model.gates.cgc import CGCGate
from dselect_k_model.hyper_parameters import HyperParameters, network_config
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import assert_near
from support.ways import config

pytestmark = pytest.mark.usefixtures("float64")


def network(**keys):
    return build.build(HyperParameters.from_config(config(**{**SMALL, **TABLE, "tasks": TASKS, "gate": "cgc", **keys})))


def test_weights_are_a_softmax_over_the_experts_that_are_allowed(rng):
    gate = CGCGate(6, [1, 4, 5], feature_size=3)
    features = rng.randn(7, 3)
    weights = gate(paddle.to_tensor(features))[0].numpy()
    exponentials = np.exp(features @ gate.weight.numpy())
    assert (weights[:, [0, 2, 3]] == 0).all()
    assert_near(weights[:, [1, 4, 5]], exponentials / exponentials.sum(axis=1, keepdims=True), 1e-14)


@pytest.mark.parametrize(
    "expert_num,options,allowed",
    [
        (8, {}, [[0, 1, 6, 7], [2, 3, 6, 7], [4, 5, 6, 7]]),
        (4, {}, [[0, 3], [1, 3], [2, 3]]),
        (3, {}, [[0], [1], [2]]),
        (6, {"own_experts": 1}, [[0, 3, 4, 5], [1, 3, 4, 5], [2, 3, 4, 5]]),
    ],
)
def test_a_task_has_experts_of_its_own_and_the_rest_are_shared(expert_num, options, allowed):
    keys = {f"gate_options__{name}": value for name, value in options.items()}
    assert [gate.allowed for gate in network(expert_num=expert_num, **keys).gates] == allowed


def test_an_expert_of_another_task_gets_no_gradient(rng):
    found = network(expert_num=4)
    dense, ids, *_ = table_batches(rng, 1)[0]
    found([paddle.to_tensor(dense), paddle.to_tensor(ids)])[1].sum().backward()
    has_gradient = [
        any(p.grad is not None and bool((p.grad != 0).any()) for p in e.parameters()) for e in found.experts
    ]
    assert has_gradient == [False, True, False, True]


def test_too_few_experts_are_refused():
    with pytest.raises(ValueError, match="expert_num is 2, but the gate cgc needs 1 for each of 3 tasks"):
        network(expert_num=2)
    with pytest.raises(ValueError, match="expert_num is 8, but the gate cgc needs 3 for each of 3 tasks"):
        network(expert_num=8, gate_options__own_experts=3)


def test_a_checkpoint_must_agree_in_the_number_of_own_experts():
    def found(**keys):
        return network_config(config(gate="cgc", **keys))

    assert found() != found(gate_options__own_experts=3)
