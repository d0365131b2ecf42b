"""tools/engine/checkpoints/compatibility.py: a checkpoint of another network is refused by key and values."""

import pytest

from dselect_k_model import hyper_parameters
from dygraph_model import DygraphModel
from engine.checkpoints import compatibility, folders, manifests, weight_files
from engine.errors import UserError
from support.checkpoints import FACTS
from support.toolbox import opened

PREFIX = "hyper_parameters."
# key -> another value; all of them shape the network
OTHERS = {
    "input.image": [1, 28, 28], "input.dense_size": 3, "input.vocabulary_sizes": [5], "input.embedding_size": 3,
    "bottom": "mlp", "bottom_sizes": [3], "tasks": [{"kind": "binary"}], "task_balance": "uncertainty",
    "expert": "mlp", "expert_hidden_sizes": [7], "expert_activation": "silu",
    "gate": "dselect_k_per_example", "gate_search_steps": 9, "task_num": 3, "class_num": 12, "expert_num": 3,
    "expert_norm": "group", "top_k": 1, "gamma": 0.5, "expert_size": 7, "tower_size": 9,
    "input.list_sizes": [4], "input.list_pooling": ["sum"], "input.shared_embeddings": [[0, 1]],
}  # fmt: skip
# key -> what it goes with, then and now
WITH = {
    "input.list_pooling": {PREFIX + "input.list_sizes": [4]},
    "input.shared_embeddings": {PREFIX + "input.vocabulary_sizes": [4, 4]},
}
FREE = ["optimizer.learning_rate=0.5", "entropy_weight=0.7", "optimizer.class=sgd", "entropy_schedule=linear"]
SMALL = ["hyper_parameters.expert_num=2", "hyper_parameters.expert_size=8", "runner.to_static=false"]
SMALL += ["runner.steps_per_epoch=4", "hyper_parameters.task_weights=[]"]


class Foreign:
    """A package that does not state which keys shape its network."""


def check(then, now, model=DygraphModel):
    compatibility.check_network(weight_files.Weights("output/0/rec.pdparams", {}, {}, then), model, now)


def test_every_key_that_shapes_the_network_is_tried():
    assert {PREFIX + key for key in OTHERS} == set(hyper_parameters.network_config({}))


@pytest.mark.parametrize("key", OTHERS)
def test_another_network_is_refused_by_key_and_values(key):
    default = hyper_parameters.network_config({})[PREFIX + key]
    with pytest.raises(UserError) as error:
        check(WITH.get(key, {}), {**WITH.get(key, {}), PREFIX + key: OTHERS[key]})
    for words in (
        f"{PREFIX}{key} was {default!r}",
        f"is {OTHERS[key]!r} now",
        f"-o {PREFIX}{key}={default}",
        "output/0",
    ):
        assert words in str(error.value)


def test_the_same_value_may_be_written_in_another_way():
    """Omitted or not, as a whole number or a float, in capitals; PaddleRec's name for the number of tasks."""
    others = {"tower_size": 50.0, "gamma": 1, "gate_num": 2, "gate": "DSelect_K"}
    check({}, {PREFIX + key: value for key, value in others.items()})


@pytest.mark.parametrize("config", [{PREFIX + "gamma": "x" * 9999}, {PREFIX + "nonsense": [1]}, {PREFIX + "top_k": {}}])
def test_a_saved_config_that_makes_no_sense_is_refused(config):
    with pytest.raises(UserError, match="cannot be read") as error:
        check(config, {})
    assert len(str(error.value)) < 600


def test_a_difference_is_a_warning_if_the_package_does_not_state_what_matters(caplog):
    check({PREFIX + "size": 3}, {PREFIX + "size": 4, "runner.seed": 1}, Foreign())
    assert f"{PREFIX}size was 3 in training and is 4 now" in caplog.text


def test_weights_without_a_manifest_are_loaded_with_a_warning(caplog):
    check(None, {PREFIX + "size": 4}, Foreign())
    (line,) = caplog.messages
    assert "manifest.json" in line and "cannot be checked" in line


@pytest.fixture(scope="module", params=["dynamic", "static"])
def saved(request, tmp_path_factory):
    """The folder of an untrained network's checkpoint, epoch 0."""
    folder = tmp_path_factory.mktemp(request.param) / "output"
    with opened(request.param, "train", SMALL) as (graph, config, _):
        config = {key: value for key, value in config.items() if key.startswith(PREFIX)}
        with folders.new_folder(str(folder), 0) as epoch:
            graph.write(epoch)
            manifests.write(epoch, graph.parameters(), **{**FACTS, "epoch": 1, "graph": graph.name, "config": config})
    return folder


@pytest.mark.parametrize("graph,job", [("dynamic", "infer"), ("static", "infer"), ("static", "export")])
def test_keys_of_the_network_must_agree_and_others_may_differ(saved, graph, job):
    with opened(graph, job, [*SMALL, *(PREFIX + text for text in FREE)]) as (opened_graph, _, _):
        opened_graph.read(str(saved / "0"))
    with opened(graph, job, [*SMALL, f"{PREFIX}gamma=0.5"]) as (opened_graph, _, _):
        with pytest.raises(UserError, match="gamma was 1.0"):
            opened_graph.read(str(saved / "0"))


@pytest.mark.parametrize("graph", ["dynamic", "static"])
def test_a_warm_start_needs_the_same_network(saved, graph):
    overrides = [*SMALL, f"runner.model_init_path={saved / '0'}"]
    with opened(graph, "train", [*overrides, PREFIX + FREE[0]]):
        pass
    with pytest.raises(UserError, match="gamma"), opened(graph, "train", [*overrides, f"{PREFIX}gamma=0.5"]):
        pass
