"""A save is taken over as the network it was trained as, or refused by key and values, whoever reads it."""

import logging

import pytest
from conftest import ROOT
from toolbox import assert_refused, opened, run_tool

import hyper_parameters
from engine.errors import UserError
from engine.saves import folders, manifests, same_network, weight_files

# key -> another value; all of them shape the network
OTHERS = {
    "input.image": [1, 28, 28], "input.dense_size": 3, "input.vocabulary_sizes": [5], "input.embedding_size": 3,
    "bottom": "mlp", "bottom_sizes": [3], "tasks": [{"kind": "binary"}], "task_balance": "uncertainty",
    "expert": "mlp", "expert_hidden_sizes": [7], "expert_activation": "silu",
    "gate": "dselect_k_per_example", "task_num": 3, "class_num": 12, "expert_num": 3, "expert_norm": "group",
    "top_k": 1, "gamma": 0.5, "expert_size": 7, "tower_size": 9,
}  # fmt: skip
FREE = ["optimizer.learning_rate=0.5", "entropy_weight=0.7", "optimizer.class=sgd", "entropy_schedule=linear"]
SMALL = ["hyper_parameters.expert_num=4", "hyper_parameters.expert_size=8", "runner.to_static=false"]
SMALL += ["runner.steps_per_epoch=4", "hyper_parameters.task_weights=[]"]
PREFIX = "hyper_parameters."


@pytest.fixture(scope="module", params=["dynamic", "static"])
def saved(request, tmp_path_factory):
    """The output folder of a network as it starts, saved as epoch 0 with a manifest."""
    folder = tmp_path_factory.mktemp(request.param) / "output"
    with opened(request.param, "train", SMALL) as (graph, config, _):
        with folders.new_folder(str(folder), 0) as epoch:
            graph.write(epoch)
            manifests.write(
                epoch, graph.parameters(), graph=graph.name, run="r", epoch=1, batch=0, schedule=None, numbers={},
                so_far=None, config={key: value for key, value in config.items() if key.startswith(PREFIX)},
            )  # fmt: skip
    return folder


def test_every_key_that_shapes_the_network_is_tried():
    assert {PREFIX + key for key in OTHERS} == set(hyper_parameters.network_config({}))


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("graph,job", [("dynamic", "infer"), ("static", "infer"), ("static", "export")])
def test_a_save_of_another_network_is_refused_by_key_and_values(saved, graph, job, key):
    with opened(graph, job, [*SMALL, f"{PREFIX}{key}={OTHERS[key]}"]) as (opened_graph, config, _):
        then = {"expert_num": 4, "expert_size": 8}.get(key, hyper_parameters.network_config({})[PREFIX + key])
        with pytest.raises(UserError) as error:
            opened_graph.read(str(saved / "0"))
    for word in (f"{PREFIX}{key} was {then!r}", f"is {OTHERS[key]!r} now", f"-o {PREFIX}{key}={then}", "output/0"):
        assert word in str(error.value).replace("\\", "/")
    assert "batch_norm" not in str(error.value)


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_a_warm_start_too(saved, graph):
    for key, fits in ((f"{PREFIX}gamma=0.5", False), (PREFIX + FREE[0], True)):
        overrides = [*SMALL, key, f"runner.model_init_path={saved / '0'}"]
        if fits:
            with opened(graph, "train", overrides):
                continue
        with pytest.raises(UserError, match="gamma"):
            with opened(graph, "train", overrides):
                pass


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_keys_that_shape_the_training_alone_may_differ(saved, graph):
    with opened(graph, "infer", [*SMALL, *(PREFIX + text for text in FREE)]) as (opened_graph, _, _):
        opened_graph.read(str(saved / "0"))


def test_the_same_value_may_be_written_in_another_way(saved):
    """By default or given, as a whole number or not, in capitals; PaddleRec's name for the number of tasks."""
    with opened("dynamic", "infer", [*SMALL, f"{PREFIX}gate=DSelect_K"]) as (graph, config, _):
        del config[PREFIX + "top_k"]
        config.update({PREFIX + "tower_size": 50.0, PREFIX + "gamma": 1, PREFIX + "gate_num": 2})
        graph.read(str(saved / "0"))


def weights(config):
    return weight_files.Weights("output/0/rec.pdparams", {}, {}, config)


class Foreign:
    """A package that does not say which keys shape its network."""


def test_a_difference_is_told_where_the_package_does_not_say_what_matters(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    same_network.check(Foreign(), weights({PREFIX + "size": 3}), {PREFIX + "size": 4, "runner.seed": 1})
    assert f"{PREFIX}size was 3 in training and is 4 now" in caplog.text


def test_without_a_manifest_it_is_said_that_nothing_could_be_checked(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    same_network.check(Foreign(), weights(None), {PREFIX + "size": 4})
    (line,) = caplog.messages
    assert "manifest.json" in line and "cannot be checked" in line


@pytest.mark.parametrize("config", [{PREFIX + "gamma": "x" * 9999}, {PREFIX + "nonsense": [1]}, {PREFIX + "top_k": {}}])
def test_a_manifests_config_that_makes_no_sense_is_refused(config):
    with opened("dynamic", "infer", SMALL) as (graph, now, _):
        with pytest.raises(UserError, match="cannot be read") as error:
            same_network.check(graph.model, weights(config), now)
    assert len(str(error.value)) < 600


def test_the_tool_says_it_in_one_message(saved, tmp_path):
    overrides = [*SMALL, f"runner.infer_load_path={saved}", f"{PREFIX}gamma=0.5", f"{PREFIX}class_num=12"]
    process = run_tool("infer", ROOT / "config.yaml", *overrides, cwd=tmp_path)
    assert_refused(process, "gamma was 1.0", "0.5", "class_num was 10", "12")
