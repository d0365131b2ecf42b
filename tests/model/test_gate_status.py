"""The experts that each task uses, as the log reports them: the same in both graphs, and computed again in NumPy."""

import numpy as np
import paddle
import pytest

from engine import loop
from engine.jobs import GRAPHS
from engine.meter import Meter
from support import oracles
from support.rounding import assert_near
from support.toolbox import batches_of, opened, saved_after_a_few_steps

EXPERTS, EXAMPLES = 4, 50
# A logit is a float32 sum of 1296 products: off by 6e-8 x 36 x their size, some units, so by 1e-5. The slope of a
# smooth-step of width 0.05 is 30, and a weight is the product of two.
WEIGHTS_32 = 1e-3


@pytest.fixture(scope="module", params=["dselect_k", "dselect_k_per_example"])
def saved(request, tmp_path_factory):
    """(gate, overrides) of a network after a few steps, its weights in epoch 0 of infer_load_path."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [f"hyper_parameters.gate={request.param}", f"hyper_parameters.expert_num={EXPERTS}"]
    overrides += ["hyper_parameters.gamma=0.05", "runner.to_static=false", "runner.infer_batch_size=32"]
    overrides += ["hyper_parameters.expert=mlp", "hyper_parameters.expert_size=8", "hyper_parameters.tower_size=8"]
    # steps so small that the weights of a per-example gate still differ from image to image
    overrides += ["hyper_parameters.optimizer.learning_rate=0.0003", "hyper_parameters.entropy_weight=0"]
    return request.param, saved_after_a_few_steps(folder, EXAMPLES, *overrides, "runner.drop_last=false")


def assert_status(status, state, images, over):
    """Of both tasks, by the gates' parameters in ``state``: structured name -> array."""
    assert list(status) == [f"task {task} experts{over}" for task in (1, 2)]
    for t, weights in enumerate(status.values()):
        start = f"gates.{t}."
        gate = {n[len(start) :]: np.asarray(v, float) for n, v in state.items() if n.startswith(start)}
        found = np.array([weights.get(str(i), 0.0) for i in range(EXPERTS)])
        assert_near(found, mean_weights(gate, images.reshape(len(images), -1).astype(float)), WEIGHTS_32)
        assert all(weights.values()), "no expert without weight is named"


def mean_weights(gate, images):
    """[n]: of a gate's parameters, over the images where it reads them."""
    if "selector_weight" not in gate:
        return oracles.gate(gate["selector_logits"].reshape(2, -1), gate["mixing_logits"], EXPERTS, 0.05)
    z = images @ gate["selector_weight"] + gate["selector_logits"]
    w = images @ gate["mixing_weight"] + gate["mixing_logits"]
    return np.mean([oracles.gate(a.reshape(2, -1), b, EXPERTS, 0.05) for a, b in zip(z, w)], axis=0)


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_after_an_evaluation_the_weights_are_those_of_all_examples(saved, graph_name):
    gate, overrides = saved
    with opened(graph_name, "infer", overrides) as (graph, config, settings):
        graph.read(f"{settings.infer_load_path}/0")
        batches = batches_of(config, settings, "infer")
        loop.evaluate(graph, batches, 0, Meter(graph_name, "infer", 1000, None, graph.values_at_end()))
        images = np.concatenate([batch[0] for batch in batches(0)])
        status, state = graph.status(), paddle.load(f"{settings.infer_load_path}/0/rec.pdparams")
    assert_status(status, state, images, ", mean weights over all examples" if gate == "dselect_k_per_example" else "")


@pytest.mark.parametrize("graph_name", GRAPHS)
def test_in_training_the_weights_are_the_last_and_reading_them_changes_nothing(saved, graph_name):
    """A shared gate's weights are those after the last step, of a per-example gate those within it, on its batch."""
    gate, overrides = saved
    with opened(graph_name, "train", overrides) as (graph, config, settings):
        graph.begin_epoch()
        for batch in batches_of(config, settings, "train")(0):
            before = {name: np.array(value) for name, value in graph.parameters().items()}
            graph.train_step(batch)
        paddle.seed(5)
        status = graph.status()
        state = before if gate == "dselect_k_per_example" else graph.parameters()
        labels = graph.parameter_labels()
        state = {labels.get(name, name).split(" ")[0]: np.array(value) for name, value in state.items()}
        assert graph_name == "static" or all(layer.training for layer in graph.net.sublayers(include_self=True))
    drawn = float(paddle.rand([]))
    paddle.seed(5)
    assert drawn == float(paddle.rand([])), "reading the status has drawn a random number"
    over = ", mean weights over the last batch" if gate == "dselect_k_per_example" else ""
    assert_status(status, state, np.asarray(batch[0]), over)
