"""The experts that a config names, and those of a user's own."""

import pytest

import net
from dselect_k_model import build
from dselect_k_model.hyper_parameters import HyperParameters, network_config
from support.examples import SMALL, TABLE, TASKS, table_batches
from support.ways import config, start

HERE = "support.users_parts"
WITH_KEYS = {"expert": f"{HERE}.expert_with_keys"}


def experts_of(**keys):
    return build.build(HyperParameters.from_config(config(**{**SMALL, **keys}))).experts


def test_auto_is_convolutions_for_an_image_and_linear_layers_for_a_table():
    assert {type(expert) for expert in experts_of()} == {net.CNNExpert}
    assert {type(expert) for expert in experts_of(**TABLE)} == {type(e) for e in experts_of(expert="mlp")} == {net.MLP}


def test_a_users_expert_gets_its_options_and_their_defaults():
    for options, width in (({}, 6), ({"expert_options__width": 9}, 9)):
        for expert in experts_of(**WITH_KEYS, **options):
            assert [list(p.shape) for p in expert.parameters()] == [[1296, width], [width], [width, 16], [16]]
    found = [network_config(config(**WITH_KEYS, **o)) for o in ({}, {"expert_options__width": 9})]
    assert [values["hyper_parameters.expert_options.width"] for values in found] == [6, 9]


@pytest.mark.parametrize(
    "keys,words",
    [
        ({**WITH_KEYS, "expert_options__widht": 6}, "expert_options.widht .*did you mean .*expert_options.width"),
        ({"expert_options__width": 6}, "expert_options has width, .* the expert auto takes no expert_options"),
        ({"expert": f"{HERE}.no_layer"}, "gives a str, not a paddle.nn.Layer"),
        ({"expert": f"{HERE}.nothing"}, "expert is .*nothing cannot be imported"),
        ({"expert": f"{HERE}.too_wide_expert"}, "an expert's output has the shape .*17., but must be .any, 16"),
    ],
)
def test_a_wrong_expert_or_option_is_refused_by_name(keys, words, rng):
    with pytest.raises(ValueError, match=words):
        start("eager", config(**{**SMALL, **TABLE, "tasks": TASKS, **keys})).step(table_batches(rng, 1)[0])
