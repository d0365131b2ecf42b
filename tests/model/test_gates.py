"""The gates that a config names; keys and learning rate of a user's own gate."""

import logging

import numpy as np
import pytest

from dselect_k_model import build
from dselect_k_model.gates import GATES
from dselect_k_model.hyper_parameters import HyperParameters, network_config
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.rounding import SUMS, assert_near
from support.ways import config, start

pytestmark = pytest.mark.usefixtures("float64")
WITH_KEYS = {"gate": "support.users_parts.gate_with_keys"}


def gates_of(**keys):
    """A network's gates; ``gate_options__x`` stands for a key of the gate's own."""
    return build.build(HyperParameters.from_config(config(**SMALL, **keys))).gates


def test_a_users_gate_gets_its_options_and_their_defaults():
    assert gates_of(**WITH_KEYS, gate_options__chosen=2)[0].weights.tolist() == [0, 0, 0.5, 0]
    given = {"gate_options__chosen": "1", "gate_options__weight": 3}
    assert gates_of(**WITH_KEYS, **given)[1].weights.tolist() == [0, 3, 0, 0]


@pytest.mark.parametrize(
    "keys,words",
    [
        ({**WITH_KEYS}, "_options.chosen is missing. The expert"),
        ({**WITH_KEYS, "gate_options__chosen": -1}, "_options.chosen is -1, but must be a whole number >= 0"),
        ({**WITH_KEYS, "gate_options__chosen": 1, "gate_options__wieght": 1}, "did you mean .*gate_options.weight"),
        ({"gate_options__weight": 1}, "_options has weight, .* the gate dselect_k takes no gate_options"),
        ({"gate": "support.users_parts.no_layer"}, "gives a str, not a net.Gate"),
        ({"gate": "support.users_parts.nothing"}, "nothing cannot be imported from support.users_parts"),
        ({"gate": "no_module.gate"}, "gate cannot be imported from no_module"),
        ({"gate": "sotfmax"}, " is 'sotfmax', but must be dselect_k, "),
    ],
)
def test_a_wrong_gate_or_option_is_refused_by_name(keys, words):
    with pytest.raises(ValueError, match=f"hyper_parameters.gate.*{words}"):
        gates_of(**keys)


def test_a_checkpoint_agrees_in_the_options_in_force():
    def found(**options):
        return network_config(config(**WITH_KEYS, **{f"gate_options__{k}": v for k, v in options.items()}))

    assert found(chosen=1) == found(chosen=1.0, weight="0.5") != found(chosen=2)
    assert found(chosen=1)["hyper_parameters.gate_options.weight"] == 0.5


@pytest.mark.parametrize("gate,number", [("shared_bottom", 1), ("single_task", 3), ("softmax", 4)])
def test_a_gate_that_needs_a_number_of_experts_has_it_and_the_log_says_that_expert_num_is_ignored(gate, number, caplog):
    caplog.set_level(logging.INFO, "dselect_k")
    keys = {**SMALL, **TABLE, "tasks": TASKS, "gate": gate, "top_k": 4}
    network = build.build(HyperParameters.from_config(config(**keys)))
    assert len(network.experts) == number
    assert [f"the gate {gate} has {number} experts; expert_num is ignored"] * (number != 4) == caplog.messages
    if gate == "single_task":
        assert [g.weights.tolist() for g in network.gates] == np.eye(3).tolist()


@pytest.mark.parametrize("gate", GATES)
def test_top_k_is_limited_to_the_experts_where_the_gate_has_it(gate):
    flat = config(gate=gate, expert_num=2, top_k=3)
    if not GATES[gate].has_top_k:
        assert HyperParameters.from_config(flat).top_k == 3
        return
    with pytest.raises(ValueError, match="top_k is 3, but there are only 2 experts"):
        HyperParameters.from_config(flat)


USERS = "support.users_parts.gate_of_two"


@pytest.mark.parametrize(
    "way,gate",
    [*(("eager", gate) for gate in ("softmax", "top_k", "dselect_k_per_example", "comet", USERS)), ("static", USERS)],
)
def test_the_gates_learning_rate_is_a_multiple_of_the_others(way, gate, rng):
    """By plain SGD: three times the rate, three times the step. (DSelect-k in a program: test_training.py.)"""
    keys = {**SMALL, **TABLE, "tasks": TASKS, "gate": gate, "optimizer__class": "sgd", "optimizer__momentum": 0.0}
    batch, moved = table_batches(rng, 1)[0], []
    for factor in (1.0, 3.0):
        run = start(way, config(**keys, optimizer__learning_rate=0.1, optimizer__gate_learning_rate_factor=factor))
        before = run.state()
        run.step(batch)
        moved.append({key: run.state()[name] - before[name] for key, name in run.names.items()})
    for key in moved[0]:
        if key != "step":
            assert_near(moved[1][key], (3 if key.startswith("gates") else 1) * moved[0][key], SUMS, key)
    assert max(np.abs(step).max() for key, step in moved[0].items() if key.startswith("gates")) > 1e-6
