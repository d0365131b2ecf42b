"""The gates that a config can name, a row each, and gates of the user's.

A gate that net.py does not have is a file of this folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Callable, Optional

import net
from dselect_k_model.config_key import NETWORK, Key, check_all
from dselect_k_model.gates import cgc, relu_routing
from dselect_k_model.gates.comet import CometGate
from dselect_k_model.gates.entmax import Entmax15Gate
from dselect_k_model.gates.local_search import LocalSearch
from dselect_k_model.gates.shared import SharedGate
from dselect_k_model.gates.sparsemax import SparsemaxGate
from dselect_k_model.users_objects import find


@dataclasses.dataclass(frozen=True)
class Gate:
    """How a config's gate is made.

    Args:
        make: function (hyper, task's number, expert_num, feature_size, **options) -> net.Gate.
        has_top_k: whether ``top_k`` limits the experts of a task.
        expert_num: function (number of tasks) -> the number of experts that the gate needs, whatever the config says.
        keys: of ``gate_options``, by name.
    """

    make: Callable
    has_top_k: bool = True
    expert_num: Optional[Callable] = None
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)


def _smooth(gate, per_example):
    def make(hyper, task, expert_num, feature_size):
        factor = hyper.optimizer_gate_learning_rate_factor
        return gate(expert_num, hyper.top_k, hyper.gamma, feature_size if per_example else 0, factor)

    return make


def _softmax(kind):
    def make(hyper, task, expert_num, feature_size):
        return kind(expert_num, feature_size, hyper.optimizer_gate_learning_rate_factor)

    return make


def _top_k(noisy):
    def make(hyper, task, expert_num, feature_size):
        return net.TopKGate(expert_num, hyper.top_k, feature_size, noisy, hyper.optimizer_gate_learning_rate_factor)

    return make


def _shared(make):
    """A gate's ``make``, with the same weights for all examples. Not for noise, which each process draws itself."""
    return lambda hyper, task, expert_num, _: SharedGate(make(hyper, task, expert_num, 1))


def _relu_routing(hyper, task, expert_num, feature_size, **options):
    factor = hyper.optimizer_gate_learning_rate_factor
    return relu_routing.ReluRoutingGate(expert_num, hyper.top_k, feature_size, **options, learning_rate_factor=factor)


GATES = {
    "dselect_k": Gate(_smooth(net.DSelectKGate, per_example=False)),
    "dselect_k_per_example": Gate(_smooth(net.DSelectKGate, per_example=True)),
    "comet": Gate(_smooth(CometGate, per_example=True)),
    "comet_shared": Gate(_smooth(CometGate, per_example=False)),
    "softmax": Gate(_softmax(net.SoftmaxGate), has_top_k=False),
    "softmax_shared": Gate(_shared(_softmax(net.SoftmaxGate)), has_top_k=False),
    "sparsemax": Gate(_softmax(SparsemaxGate), has_top_k=False),
    "entmax15": Gate(_softmax(Entmax15Gate), has_top_k=False),
    "top_k": Gate(_top_k(noisy=False)),
    "top_k_shared": Gate(_shared(_top_k(noisy=False))),
    "noisy_top_k": Gate(_top_k(noisy=True)),
    "relu_routing": Gate(_relu_routing, keys=relu_routing.KEYS),
    "cgc": Gate(cgc.make, has_top_k=False, keys=cgc.KEYS),
    "random": Gate(lambda hyper, task, n, _: net.FixedGate.of_random_experts(n, hyper.top_k, seed=task)),
    "shared_bottom": Gate(lambda *_: net.FixedGate([1.0]), has_top_k=False, expert_num=lambda task_num: 1),
    "single_task": Gate(
        lambda hyper, task, n, _: net.FixedGate([float(i == task) for i in range(n)]),
        has_top_k=False,
        expert_num=lambda task_num: task_num,
    ),
}


def expert_num(hyper):
    """The number of experts of the network."""
    needed = getattr(GATES.get(hyper.gate), "expert_num", None)
    return needed(len(hyper.task_list)) if needed else hyper.expert_num


def make_gate(hyper, task, feature_size):
    """The gate of task number ``task``.

    Args:
        hyper: HyperParameters.
        task: the task's number, from 0.
        feature_size: width of the features that the gate may read.
    Raises:
        ValueError: a gate of the user's cannot be found, or is no gate, or its options are wrong; there is nothing to
            search around the gate (``gate_search_steps``).
    """
    number, where = expert_num(hyper), "hyper_parameters.gate"
    if hyper.gate in GATES:
        row = GATES[hyper.gate]
        options = own_options(row, hyper.gate_options, where, hyper.gate)
        return _with_search(row.make(hyper, task, number, feature_size, **options), hyper)
    function = find(GATES, hyper.gate, where)
    gate = function(number, hyper.top_k, feature_size, **own_options(function, hyper.gate_options, where, hyper.gate))
    if not all(hasattr(gate, name) for name in ("expert_num", "per_example", "penalties")):
        raise ValueError(f"{where} is {hyper.gate!r}, but that gives a {type(gate).__name__}, not a net.Gate.")
    for parameter in gate.parameters():
        parameter.optimize_attr["learning_rate"] *= hyper.optimizer_gate_learning_rate_factor
    return _with_search(gate, hyper)


def _with_search(gate, hyper):
    """The gate, within a local search if the config asks for one."""
    if not hyper.gate_search_steps:
        return gate
    reasons = {
        "has one expert only": gate.expert_num == 1,
        "has fixed weights": isinstance(gate, net.FixedGate),
        "may use some experts only, which a search would swap for others": isinstance(gate, cgc.CGCGate),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise ValueError(
            f"hyper_parameters.gate_search_steps is {hyper.gate_search_steps}, but the gate {hyper.gate} {reason}. Set "
            "it to 0, or use another gate."
        )
    return LocalSearch(gate, hyper.gate_search_steps, hyper.optimizer_gate_learning_rate_factor)


def own_options(declares, given, where, name):
    """The options of a gate or an expert, checked by the keys that it declares in ``declares.keys``."""
    return check_all(getattr(declares, "keys", {}), given, f"{where}_options.", name)


def options_in_force(registry, name, given, where):
    """The options by the name of a gate or an expert that a checkpoint must agree in; as given if it cannot be found.

    Of the user's own these are all options; of built-in ones those whose key decides the network.
    """
    try:
        declares = registry[name] if name in registry else find(registry, name, where)
    except ValueError:
        return given
    options = own_options(declares, given, where, name)
    if name in registry:
        return {option: value for option, value in options.items() if declares.keys[option].decides == NETWORK}
    return options
