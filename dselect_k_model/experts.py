"""The experts that a config can name, a row each; and experts of the user's."""

import math

from paddle import nn

import net
from dselect_k_model import kernels
from dselect_k_model.gates import own_options
from dselect_k_model.users_objects import find


def _cnn(hyper, shape):
    return net.CNNExpert(shape, hyper.expert_size, hyper.expert_norm, kernels.chosen(hyper.kernels))


def _mlp(hyper, shape):
    return net.MLP(
        math.prod(shape),
        [*hyper.expert_hidden_sizes, hyper.expert_size],
        hyper.expert_norm,
        hyper.expert_activation,
        hyper.expert_dropout,
        activate_output=True,
    )


EXPERTS = {  # functions (hyper, shape of an example) -> a layer [B, ...] -> [B, expert_size]
    "auto": lambda hyper, shape: _mlp(hyper, shape) if len(shape) == 1 else _cnn(hyper, shape),
    "cnn": _cnn,
    "mlp": _mlp,
}


def make_expert(hyper, shape):
    """One expert over examples of ``shape``.

    Raises:
        ValueError: an expert of the user's cannot be found, or is no layer, or its options are wrong.
    """
    if hyper.expert in EXPERTS:
        return EXPERTS[hyper.expert](hyper, shape)
    where = "hyper_parameters.expert"
    function = find(EXPERTS, hyper.expert, where)
    options = own_options(function, hyper.expert_options, where, hyper.expert)
    expert = function(shape, hyper.expert_size, **options)
    if not isinstance(expert, nn.Layer):
        raise ValueError(
            f"{where} is {hyper.expert!r}, but that gives a {type(expert).__name__}, not a paddle.nn.Layer."
        )
    return expert
