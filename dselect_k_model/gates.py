"""The gates that a config can name, a row each; and gates of the user's."""

import dataclasses
from typing import Callable, Optional

import net
from dselect_k_model.config_key import check_all
from dselect_k_model.users_objects import find


@dataclasses.dataclass(frozen=True)
class Gate:
    """How a config's gate is made.

    Args:
        make: function (hyper, task's number, expert_num, feature_size) -> net.Gate.
        has_top_k: whether ``top_k`` limits the experts of a task.
        expert_num: function (number of tasks) -> the number of experts that the gate needs, whatever the config says.
    """

    make: Callable
    has_top_k: bool = True
    expert_num: Optional[Callable] = None


def _dselect_k(per_example):
    def make(hyper, task, expert_num, feature_size):
        factor = hyper.optimizer_gate_learning_rate_factor
        return net.DSelectKGate(expert_num, hyper.top_k, hyper.gamma, feature_size if per_example else 0, factor)

    return make


def _softmax(hyper, task, expert_num, feature_size):
    return net.SoftmaxGate(expert_num, feature_size, hyper.optimizer_gate_learning_rate_factor)


def _top_k(noisy):
    def make(hyper, task, expert_num, feature_size):
        return net.TopKGate(expert_num, hyper.top_k, feature_size, noisy, hyper.optimizer_gate_learning_rate_factor)

    return make


GATES = {
    "dselect_k": Gate(_dselect_k(per_example=False)),
    "dselect_k_per_example": Gate(_dselect_k(per_example=True)),
    "softmax": Gate(_softmax, has_top_k=False),
    "top_k": Gate(_top_k(noisy=False)),
    "noisy_top_k": Gate(_top_k(noisy=True)),
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
        ValueError: a gate of the user's cannot be found, or is no gate, or its options are wrong.
    """
    number = expert_num(hyper)
    if hyper.gate in GATES:
        return GATES[hyper.gate].make(hyper, task, number, feature_size)
    where = "hyper_parameters.gate"
    function = find(GATES, hyper.gate, where)
    gate = function(number, hyper.top_k, feature_size, **own_options(function, hyper.gate_options, where, hyper.gate))
    if not all(hasattr(gate, name) for name in ("expert_num", "per_example", "penalties")):
        raise ValueError(f"{where} is {hyper.gate!r}, but that gives a {type(gate).__name__}, not a net.Gate.")
    for parameter in gate.parameters():
        parameter.optimize_attr["learning_rate"] *= hyper.optimizer_gate_learning_rate_factor
    return gate


def own_options(function, given, where, name):
    """The options of a gate or an expert of the user's, checked by the keys that it declares in ``function.keys``."""
    return check_all(getattr(function, "keys", {}), given, f"{where}_options.", name)


def options_in_force(registry, name, given, where):
    """``own_options`` by the name of the gate or expert; as given if that cannot be found, {} if it is built in."""
    if name in registry:
        return {}
    try:
        function = find(registry, name, where)
    except ValueError:
        return given
    return own_options(function, given, where, name)
