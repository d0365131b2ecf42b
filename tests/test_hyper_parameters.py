"""Every key is honoured or refused."""

import dataclasses
import functools
import logging

import numpy as np
import pytest
from ways import LEGACY_3, config, make_batches, start

import hyper_parameters
import training

KEYS = {f.name: f for f in dataclasses.fields(hyper_parameters.HyperParameters)}
BASE = {"expert_num": 2, "expert_size": 8, "tower_size": 8, "runner__steps_per_epoch": 4, "runner__epochs": 1}
SGD = {"optimizer__class": "sgd"}
RAMP = {"entropy_schedule": "linear"}
# key -> (another value, what else must be set for it to matter)
MLP = {"expert": "mlp"}
VARIED = {
    "input__image": ([1, 36, 36], None),
    "input__dense_size": (3, None),
    "input__vocabulary_sizes": ([3], None),
    "input__embedding_size": (3, None),
    "bottom": ("cnn", {"expert_norm": "none"}),
    "bottom_sizes": ([9], {"bottom": "mlp", "expert_norm": "none"}),
    "tasks": ([{"classes": 10}, {"kind": "binary"}], {}),
    "task_balance": ("uncertainty", {}),
    "expert": ("mlp", {}),
    "expert_hidden_sizes": ([9], MLP),
    "expert_activation": ("silu", MLP),
    "expert_dropout": (0.5, MLP),
    "balance_weight": (0.5, {"gate": "top_k"}),
    "gate": ("dselect_k_per_example", {}),
    "task_num": (1, {}),
    "class_num": (11, {}),
    "expert_num": (3, {}),
    "expert_norm": ("none", {}),
    "top_k": (1, {}),
    "gamma": (0.5, {}),
    "expert_size": (9, {}),
    "tower_size": (9, {}),
    "task_weights": ([1.0, 2.0], {}),
    "entropy_weight": (1.0, {}),
    "entropy_schedule": ("cosine", RAMP),
    "entropy_ramp_steps": (2, RAMP),
    "optimizer__class": ("adamw", {"optimizer__weight_decay": 0.1}),
    "optimizer__learning_rate": (0.01, {}),
    "optimizer__schedule": ("cosine", {}),
    "optimizer__warmup_steps": (2, {}),
    "optimizer__gate_learning_rate_factor": (5.0, {}),
    "optimizer__weight_decay": (0.1, {}),
    "optimizer__momentum": (0.1, SGD),
    "optimizer__clip_norm": (0.01, SGD),
}


IN_OTHER_TESTS = [key for key, (_, context) in VARIED.items() if context is None]  # tests/test_kit.py: tables


def trajectory(way, keys, rng_seed=5):
    """Losses of four steps, and the parameters' sizes: whatever a key changes shows in one of them."""
    run = start(way, config(**{**BASE, **keys}))
    batches = make_batches(np.random.RandomState(rng_seed), 4, task_num=keys.get("task_num", 2))
    losses = [run.step(batch)[0] for batch in batches]
    return losses, {key: run.state()[name].shape for key, name in run.names.items()}


def test_the_table_of_varied_keys_is_whole():
    assert {key.replace("__", "_") for key in VARIED} == set(KEYS)


@pytest.mark.parametrize("key", [key for key in VARIED if key not in IN_OTHER_TESTS])
@pytest.mark.parametrize("way", ["eager", "static"])
def test_every_key_changes_something(way, key):
    if key == "optimizer__clip_norm" and LEGACY_3:
        pytest.skip("refused in legacy programs, see the next test")
    value, context = VARIED[key]
    assert plain_trajectory(way, tuple(context.items())) != trajectory(way, {**context, key: value})


@functools.lru_cache
def plain_trajectory(way, context):
    plain = trajectory(way, dict(context))
    assert plain == trajectory(way, dict(context)), "the run itself must repeat"
    return plain


@pytest.mark.skipif(not LEGACY_3, reason="clipping builds in every other mode")
def test_clipping_is_refused_in_legacy_programs():
    with pytest.raises(ValueError, match="clip_norm"):
        start("static", config(**BASE, optimizer__clip_norm=1.0))


@pytest.mark.parametrize(
    "keys,word",
    [
        ({"top_k": 9}, "top_k"),
        ({"task_weights": [1.0]}, "task_weights"),
        ({"optimizer.schedule": "one_cycle", "optimizer.warmup_steps": 3}, "warmup_steps"),
        ({"expert_nun": 8}, "expert_nun"),
        ({"optimizer.lr": 0.1}, "optimizer.lr"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(keys, word):
    with pytest.raises(ValueError, match=word):
        hyper_parameters.HyperParameters.from_config({f"hyper_parameters.{k}": v for k, v in keys.items()})


@pytest.mark.parametrize("text,value", [("1e-3", 0.001), ("0.5", 0.5), (1, 1.0)])
def test_numbers_may_be_text_as_paddlerec_passes_them(text, value):
    assert hyper_parameters.HyperParameters.from_config({"hyper_parameters.gamma": text}).gamma == value


def test_a_whole_float_is_an_int():
    hyper = hyper_parameters.HyperParameters.from_config({"hyper_parameters.expert_num": 16.0})
    assert hyper.expert_num == 16 and isinstance(hyper.expert_num, int)


def test_a_config_for_paddlerec_loads_and_is_explained_in_one_message(caplog):
    flat = {
        "hyper_parameters.feature_size": 499,
        "hyper_parameters.expert_num": 8,
        "hyper_parameters.gate_num": 2,
        "hyper_parameters.expert_size": 16,
        "hyper_parameters.tower_size": 8,
        "hyper_parameters.top_k": 2,
        "hyper_parameters.optimizer.class": "Adam",
        "hyper_parameters.optimizer.learning_rate": 0.001,
        "hyper_parameters.optimizer.strategy": "async",
    }
    with caplog.at_level(logging.WARNING):
        hyper = hyper_parameters.HyperParameters.from_config(flat)
    assert (hyper.task_num, hyper.expert_size, hyper.optimizer_class) == (2, 16, "adam")
    assert len(caplog.records) == 1
    for word in ("gate_num", "feature_size", "strategy", "entropy", "softmax"):
        assert word in caplog.text


def test_a_schedule_without_a_known_length_says_so(caplog):
    hyper = hyper_parameters.HyperParameters.from_config({"hyper_parameters.optimizer.schedule": "one_cycle"})
    with caplog.at_level(logging.WARNING):
        rate = training.learning_rate(hyper, {"runner.epochs": 3})
    assert rate == hyper.optimizer_learning_rate and "steps_per_epoch" in caplog.text
    caplog.clear()
    training.learning_rate(hyper, {"runner.epochs": 3, "runner.steps_per_epoch": 0})  # not enough data for one
    assert not caplog.text


def test_a_schedule_that_the_tool_would_move_as_well_is_refused():
    hyper = hyper_parameters.HyperParameters.from_config({"hyper_parameters.optimizer.schedule": "cosine"})
    with pytest.raises(ValueError, match="lr_step"):
        training.learning_rate(hyper, {"runner.epochs": 3, "runner.steps_per_epoch": 2, "runner.lr_step": "batch"})


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_schedules_stay_within_their_bounds_and_end(schedule):
    hyper = hyper_parameters.HyperParameters.from_config({"hyper_parameters.optimizer.schedule": schedule})
    rate = training.learning_rate_schedule(hyper, 20)
    values = []
    for _ in range(30):  # beyond the end: a run that is longer than its config said
        rate.step()
        values.append(rate())
    assert max(values) == pytest.approx(hyper.optimizer_learning_rate, rel=0.01)  # its peak lies between two steps
    assert min(values) >= 0 and values[19] < values[10] and len(set(values[20:])) == 1


def test_a_schedule_is_over_all_epochs():
    hyper = hyper_parameters.HyperParameters.from_config({"hyper_parameters.optimizer.schedule": "cosine"})
    rate = training.learning_rate(hyper, {"runner.epochs": 3, "runner.steps_per_epoch": 5})
    values = []
    for _ in range(17):
        rate.step()
        values.append(rate())
    expected = [hyper.optimizer_learning_rate * (1 + np.cos(np.pi * min(t, 15) / 15)) / 2 for t in range(17)]
    np.testing.assert_allclose(values, expected, atol=1e-9)
