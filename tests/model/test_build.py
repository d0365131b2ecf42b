"""The network that a config describes: its parameters by name and shape, which checkpoints hold, and its layers."""

import paddle
import pytest

from dselect_k_model import build
from dselect_k_model.hyper_parameters import HyperParameters
from support.examples import TABLE
from support.ways import config


def built(**keys):
    return build.build(HyperParameters.from_config(config(**keys)))


def shapes(network):
    return {key: list(tensor.shape) for key, tensor in network.state_dict().items()}


def linear(name, *sizes, layers):
    """The parameters of linear layers of these sizes, at these places of a sequence."""
    found = {}
    for layer, inputs, outputs in zip(layers, sizes, sizes[1:]):
        found[f"{name}.layers.{layer}.weight"] = [inputs, outputs]
        found[f"{name}.layers.{layer}.bias"] = [outputs]
    return found


@pytest.mark.parametrize(
    "norm,gate", [("batch", "dselect_k"), ("group", "dselect_k_per_example"), ("none", "dselect_k")]
)
def test_a_network_of_images_has_the_parameters_that_its_keys_say(norm, gate):
    keys = {"task_num": 3, "class_num": 7, "expert_num": 5, "top_k": 3, "expert_size": 11, "tower_size": 13}
    network = built(**keys, expert_norm=norm, gate=gate, gamma=4.0)
    expected = {"step": [1]}
    for i in range(5):
        for block, (inputs, outputs) in enumerate([(1, 10), (10, 20)]):
            at = f"experts.{i}.layers.{block}"
            expected[f"{at}.0.weight"] = [outputs, inputs, 5, 5]
            if norm != "batch":
                expected[f"{at}.0.bias"] = [outputs]
            if norm != "none":
                names = ["weight", "bias"] + ["_mean", "_variance"] * (norm == "batch")
                expected.update({f"{at}.1.{name}": [outputs] for name in names})
        expected.update(linear(f"experts.{i}", 720, 50, 11, layers=(3, 5)))
    for t in range(3):
        for part, size in (("selector", 3 * 3), ("mixing", 3)):  # 5 experts: 3 digits
            expected[f"gates.{t}.{part}_logits"] = [size]
            if gate != "dselect_k":
                expected[f"gates.{t}.{part}_weight"] = [36 * 36, size]
        expected.update(linear(f"towers.{t}", 11, 13, 13, 7, layers=(0, 2, 4)))
    assert shapes(network) == expected
    assert all(gate.gamma == 4.0 and gate.top_k == 3 for gate in network.gates)


def test_a_network_of_a_table_has_the_parameters_and_layers_that_its_keys_say():
    keys = {"bottom": "mlp", "bottom_sizes": [9, 6], "expert_hidden_sizes": [7], "expert_size": 8, "expert_num": 2}
    activated = {"expert_activation": "silu", "expert_dropout": 0.5, "expert_norm": "none"}
    tasks = [{"classes": 3}, {"kind": "binary"}, {"kind": "regression", "tower_sizes": [4]}]
    network = built(**TABLE, **keys, **activated, tasks=tasks, tower_size=5, task_balance="uncertainty")
    expected = {"step": [1], "log_variances": [3], "inputs.embedding.weight": [4 + 7, 3]}
    expected.update(linear("bottom", 5 + 2 * 3, 9, 6, layers=(0, 2)))
    for i in range(2):
        expected.update(linear(f"experts.{i}", 6, 7, 8, layers=(0, 3)))
    for t, sizes in enumerate([(8, 5, 5, 3), (8, 5, 5, 1), (8, 4, 1)]):
        expected.update({f"gates.{t}.selector_logits": [2], f"gates.{t}.mixing_logits": [2]})
        expected.update(linear(f"towers.{t}", *sizes, layers=(0, 2, 4)))
    assert shapes(network) == expected
    names = ["Linear", "Silu", "Dropout", "Linear", "Silu"]
    assert [type(layer).__name__ for layer in network.experts[0].layers] == names
    assert network.experts[0].layers[2].p == 0.5


def test_a_bottom_is_computed_once_and_the_gates_read_it():
    network = built(bottom="cnn", gate="dselect_k_per_example", expert_num=4)
    calls = []
    network.bottom.register_forward_post_hook(lambda *_: calls.append(1))
    network(paddle.rand([2, 1, 36, 36]))
    assert calls == [1] and network.gates[0].feature_size == network.bottom.out_size == 720
