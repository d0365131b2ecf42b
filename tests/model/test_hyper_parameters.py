"""Every key is honoured or refused; a checkpoint fits other values of just those that do not decide the network."""

import functools
import logging

import numpy as np
import paddle
import pytest

from dselect_k_model import build
from dselect_k_model.config_key import NETWORK
from dselect_k_model.hyper_parameters import HyperParameters, network_config
from support.examples import TABLE, TASKS, table_batches
from support.seeds import random_state
from support.ways import config

SIDE = 16
BASES = (  # in one of them at least, a key shows
    {"expert_num": 3, "input__image": [1, SIDE, SIDE]},
    {"expert_num": 3, **TABLE, "bottom": "mlp", "expert": "mlp"},
    {"expert_num": 3, **TABLE, "gate": "dselect_k_per_example"},
    {"expert_num": 3, **TABLE, "input__list_sizes": [7]},
)


def other_values(key):
    """Allowed values that are not the default, made from the declaration of a key."""
    if key.type in ("choice", "name"):
        return [choice for choice in key.choices if choice not in (key.default, True)]  # true may be refused here
    if key.type in (int, float):
        return [key.default + 1 if key.type is int else 0.5 if key.default != 0.5 else 0.25]
    if key.type is bool:
        return [not key.default]
    if key.type == "sizes":
        return [[size + 1 for size in key.default] or [3]]
    others = {"weights": [1.0, 2.0], "mappings": [{"classes": 11}, {"kind": "binary"}], "texts": ["sum"]}
    return [{**others, list: [[1, 2]]}[key.type]]


def outputs(keys):
    """What the network computes in evaluation, from parameters and inputs drawn for their shapes."""
    hyper, rng = HyperParameters.from_config(config(**keys)), random_state(3)
    network = build.build(hyper)
    network.eval()
    network.set_state_dict(
        {name: paddle.to_tensor(rng.rand(*p.shape)).astype(p.dtype) for name, p in network.state_dict().items()}
    )
    inputs = []
    for _, shape, dtype in hyper.inputs():
        size = [2, *(3 if width == -1 else width for width in shape)]  # lists of three ids
        inputs.append(
            paddle.zeros(size, dtype) if dtype == "int64" else paddle.to_tensor(rng.rand(*size)).astype(dtype)
        )
    return [z.numpy().tolist() for z in network(inputs)]


outputs_of_base = functools.lru_cache(lambda i: outputs(BASES[i]))


@pytest.mark.parametrize("name", HyperParameters.keys())
def test_a_key_changes_what_the_network_computes_if_it_is_declared_to_and_only_then(name):
    key, changed = HyperParameters.keys()[name], []
    for value in other_values(key):
        for i, base in enumerate(BASES):
            keys = {**base, name.replace(".", "__"): value}
            if keys == base:
                continue
            try:
                found = outputs(keys)
            except ValueError:
                continue  # it does not go with this base
            changed.append(found != outputs_of_base(i))
            agrees = network_config(config(**keys)) == network_config(config(**base))
            assert agrees == (key.decides != NETWORK), f"{name}: {value}"
    assert any(changed) == (key.decides == NETWORK) and changed


def test_a_checkpoint_fits_other_weights_and_metrics_of_its_tasks():
    others = [{"weight": 3, **TASKS[0]}, {**TASKS[1], "positive_weight": 5, "metrics": ["auc"]}, TASKS[2]]
    assert network_config(config(tasks=others)) == network_config(config(tasks=TASKS))
    assert network_config(config(tasks=[{**TASKS[0], "classes": 4}, *TASKS[1:]])) != network_config(config(tasks=TASKS))


@pytest.mark.parametrize(
    "keys,words",
    [
        ({"top_k": 9}, "top_k is 9, but there are only 8"),
        ({"task_weights": [1.0]}, "task_weights has 1 numbers, but there are 2 tasks"),
        ({"optimizer__schedule": "one_cycle", "optimizer__warmup_steps": 3}, "warmup_steps is 3"),
        ({"optimizer__class": "lazy_adam"}, "lazy_adam, which needs embeddings"),
        ({**TABLE, "optimizer__class": "lazy_adam", "optimizer__weight_decay": 0.1}, "lazy_adam.* no weight_decay"),
        ({"input__image": [36, 36]}, "must be .channels, height, width"),
        ({**TABLE, "expert": "cnn"}, "expert is cnn"),
        ({"bottom": "mlp", "expert": "cnn"}, "behind the bottom mlp there is no image"),
        ({"expert_nun": 8}, "expert_nun is not a key of this model; did you mean hyper_parameters.expert_num"),
        ({"optimizer__lr": 0.1}, "optimizer.lr"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(keys, words):
    with pytest.raises(ValueError, match=f"hyper_parameters.*{words}"):
        HyperParameters.from_config(config(**keys))


def test_task_weights_are_those_of_the_tasks_in_order():
    hyper = HyperParameters.from_config(config(task_num=3, task_weights=[1, 0.5, 2], class_num=4))
    assert [(task.weight, task.kind.class_num) for task in hyper.task_list] == [(1, 4), (0.5, 4), (2, 4)]


def test_a_config_for_paddlerec_is_read_and_explained_in_one_message(caplog):
    sizes = {"feature_size": 499, "expert_num": 8, "gate_num": 3, "expert_size": 16, "tower_size": 8, "top_k": 2}
    optimizer = {"optimizer__class": "Adam", "optimizer__learning_rate": 0.001, "optimizer__strategy": "async"}
    with caplog.at_level(logging.WARNING):
        hyper = HyperParameters.from_config(config(**sizes, **optimizer))
    assert (hyper.task_num, hyper.expert_size, hyper.optimizer_class) == (3, 16, "adam")
    (message,) = caplog.messages
    assert all(word in message for word in ("gate_num", "feature_size", "strategy", "entropy", "softmax"))


TAGS = [{"kind": "multi_label", "name": "tags", "labels": ["a", "b", "c"]}]


@pytest.mark.parametrize(
    "tasks,change,words",
    [
        (TASKS, (1, (4, 1), 7), "example 4 of a batch has the id 7 in categorical feature 1, whose ids are 0 to 6"),
        (TASKS, (1, (0, 0), -1), "has the id -1 in categorical feature 0"),
        (TASKS, (2, 4, 3), "a label of task 1 is 3, but must be a class: a whole number from 0 to 2"),
        (TAGS, (2, None, np.zeros([12, 2])), "a label of task tags has the shape .2., but must be .3."),
        (TAGS, (2, None, np.zeros([12])), "a label of task tags has the shape .., but must be .3."),
        (TASKS, (2, None, np.zeros([12, 2])), "a label of task 1 has the shape .2., but must be .1."),
    ],
)
def test_a_batch_with_a_wrong_id_or_label_is_refused(tasks, change, words, rng):
    batch, (item, place, value) = table_batches(rng, 1)[0], change
    if place is None:
        batch[item] = value
    else:
        batch[item][place] = value
    with pytest.raises(ValueError, match=words):
        HyperParameters.from_config(config(**TABLE, tasks=tasks)).check_batch(batch)


def test_a_missing_label_is_no_wrong_label_and_too_few_labels_are_refused(rng):
    hyper = HyperParameters.from_config(config(**TABLE, tasks=TASKS))
    batch = table_batches(rng, 1, missing=True)[0]
    hyper.check_batch(batch)
    with pytest.raises(ValueError, match="gives 2 labels, but there are 3 tasks"):
        hyper.check_batch(batch[:-1])
