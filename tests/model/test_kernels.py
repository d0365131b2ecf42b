"""The kernels compute what Paddle's layers compute, forward and backward, or are left out."""

import concurrent.futures
import copy
import os
import pickle
import platform
import shutil
import types
from unittest import mock

import numpy as np
import paddle
import pytest
from paddle import nn

import net
from dselect_k_model import build, kernels, training
from dselect_k_model.hyper_parameters import HyperParameters
from dselect_k_model.kernels import optimizers
from support.examples import TABLE, TASKS, table_batches
from support.rounding import GRADIENTS_32, assert_near
from support.ways import config, make_batches, start

needs_kernel = pytest.mark.skipif(not kernels.load(), reason="the kernels are not compiled, or Paddle is too old")
# A weight's gradient adds up 64 x 1024 products at most, in float32: u sqrt(N) is 1.5e-5 of its size, either way.
ROUNDING = 1e-4
IMAGES = {"expert_norm": "batch"}
ON_TABLE = {**TABLE, "tasks": TASKS, "expert_norm": "none", "expert_hidden_sizes": [12, 10]}


class NeverCalled:
    """Kernels that must not be called."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was called")


def two_networks(shape, norm, computing=kernels):
    """A CNN with the kernels and one without them, of equal parameters, none of them 0 or 1."""
    ours, layers = net.CNN(shape, norm, computing), net.CNN(shape, norm)
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            parameter.set_value(paddle.rand(parameter.shape) + 0.5)
    layers.set_state_dict(ours.state_dict())
    return ours, layers


def outputs_and_gradients(network, image, weights):
    outputs = network(image)
    (outputs * weights).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}
    return outputs.numpy(), gradients


@needs_kernel
@pytest.mark.parametrize("norm", kernels.NORMS)
# Few images: in many windows, two numbers might lie so close that rounding decides which of them is the maximum.
@pytest.mark.parametrize("size, shape", [(17, [1, 28, 28]), (16, [3, 17, 20]), (1, [1, 36, 36])])
def test_outputs_gradients_and_statistics_are_those_of_the_layers(norm, size, shape, rng):
    image = paddle.to_tensor(rng.rand(size, *shape).astype("float32"))
    ours, layers = two_networks(shape, norm)
    weights = paddle.to_tensor(rng.randn(size, ours.out_size).astype("float32"))
    found, gradients = outputs_and_gradients(ours, image, weights)
    wanted, of_layers = outputs_and_gradients(layers, image, weights)
    assert_near(found, wanted, ROUNDING)
    assert gradients.keys() == of_layers.keys() and len(gradients) == {"none": 4, "batch": 6, "group": 8}[norm]
    for name, gradient in of_layers.items():
        assert_near(gradients[name] / abs(gradient).max(), gradient / abs(gradient).max(), ROUNDING, name)
    for name, tensor in layers.state_dict().items():  # with batch norm's running statistics
        assert_near(ours.state_dict()[name].numpy(), tensor.numpy(), ROUNDING, name)


@needs_kernel
@pytest.mark.parametrize("norm", kernels.NORMS)
def test_without_images_nothing_moves(norm):
    ours, _ = two_networks([1, 36, 36], norm)
    before = {name: tensor.numpy() for name, tensor in ours.state_dict().items()}
    outputs, gradients = outputs_and_gradients(ours, paddle.zeros([0, 1, 36, 36]), paddle.zeros([0, 720]))
    assert outputs.shape == (0, 720) and not any(gradient.any() for gradient in gradients.values())
    for name, value in before.items():
        np.testing.assert_array_equal(ours.state_dict()[name].numpy(), value, name)


@needs_kernel
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_not_lost(value):
    image = np.ones([3, 1, 36, 36], "float32")
    image[1, 0, 20, 20] = value
    ours, _ = two_networks([1, 36, 36], "none")
    outputs = ours(paddle.to_tensor(image)).numpy()
    assert not np.isfinite(outputs[1]).all() and np.isfinite(outputs[[0, 2]]).all()


@needs_kernel
def test_the_number_of_threads_changes_no_bit(monkeypatch, rng):
    image = paddle.to_tensor(rng.rand(200, 1, 36, 36).astype("float32"))
    ours, _ = two_networks([1, 36, 36], "batch")
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(kernels, "THREADS", threads)
        ours.clear_gradients()
        found.append(outputs_and_gradients(ours, image, paddle.ones([200, 720])))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        np.testing.assert_array_equal(gradient, found[1][1][name], name)


@needs_kernel
@pytest.mark.parametrize("size", [20, 180])  # few images: an expert has a thread of its own; many: all threads
def test_the_number_of_threads_changes_no_bit_of_several_experts(size, monkeypatch, rng):
    image = paddle.to_tensor(rng.rand(size, 1, 36, 36).astype("float32"))
    gates = paddle.to_tensor([[0.5, 0.0, 0.2, 0.1, 0.1, 0.1]])
    shapes = [[10, 1, 5, 5], [10], [10], [10], [10], [20, 10, 5, 5], [20], [20], [20], [20]]
    values = [rng.rand(*shape).astype("float32") for shape in shapes * 6]
    values[0][0], values[3][0] = 0, 1.2e-38  # a channel whose running mean becomes denormal
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(kernels, "THREADS", threads)
        tensors = [paddle.to_tensor(value, stop_gradient=False) for value in values]
        features = kernels.cnns(image, gates, tensors, "batch", 720)
        (features * features).sum().backward()
        assert features.shape == [5, size, 720] and not tensors[10].grad.numpy().any() and tensors[0].grad.numpy().any()
        found.append([features.numpy(), *(t.numpy() for t in tensors), *(t.grad.numpy() for t in tensors)])
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


def test_the_layers_compute_where_a_kernel_would_not_do():
    ours, layers = two_networks([1, 36, 36], "batch", NeverCalled())
    image = paddle.rand([2, 1, 36, 36])
    ours.eval(), layers.eval()
    np.testing.assert_array_equal(ours(image).numpy(), layers(image).numpy())
    ours.train()
    image.stop_gradient = False
    ours(image).sum().backward()
    assert image.grad is not None
    paddle.set_default_dtype("float64")
    try:
        net.CNN([1, 36, 36], "batch", NeverCalled())(paddle.rand([2, 1, 36, 36]))
    finally:
        paddle.set_default_dtype("float32")


def test_the_kernels_are_compiled_where_there_is_a_compiler():
    """Otherwise most tests of this file would be skipped without a word."""
    if kernels.SUPPORTED and (shutil.which("g++") or shutil.which("clang++")):
        assert kernels.load(), "run make kernels"


def replaced(block, place, layer):
    return lambda network: network.blocks[block].__setitem__(str(place), layer)


OTHER_BLOCKS = {
    "epsilon": ("batch", replaced(0, 1, nn.BatchNorm2D(10, epsilon=0.1))),
    "momentum": ("batch", replaced(1, 1, nn.BatchNorm2D(20, momentum=0.5))),
    "no scale": ("batch", replaced(0, 1, nn.BatchNorm2D(10, weight_attr=False))),
    "a bias under batch norm": ("batch", replaced(0, 0, nn.Conv2D(1, 10, 5))),
    "groups": ("group", replaced(0, 1, nn.GroupNorm(10, 10))),
    "padding": ("none", replaced(0, 0, nn.Conv2D(1, 10, 5, padding=1))),
    "float64": ("none", lambda network: network.to(dtype="float64")),
}


@pytest.mark.parametrize("change", OTHER_BLOCKS)
def test_blocks_with_other_settings_are_computed_by_their_layers(change):
    norm, replace = OTHER_BLOCKS[change]
    network = net.CNN([1, 36, 36], norm, NeverCalled())
    replace(network)
    network(paddle.ones([3, 1, 36, 36], "float64" if change == "float64" else "float32"))


# ------------------------------------------------------------------------------------------ mixtures and towers


def mixture(experts, weights, computing, towers=()):
    """(network, towers): a mixture with or without kernels, of parameters that a seed decides."""
    paddle.seed(3)
    experts, towers = [make() for make in experts], [make() for make in towers]
    for layer in [*experts, *towers]:
        for parameter in [p for p in layer.parameters() if p.ndim == 1]:
            parameter.set_value(paddle.randn(parameter.shape) / 10)
    return net.SparseMixture(experts, [net.FixedGate(each) for each in weights], kernels=computing), towers


def mlp(sizes, activate_output=True, **keys):
    return lambda: net.MLP(sizes[0], sizes[1:], activate_output=activate_output, **keys)


def cnn():
    return net.CNNExpert([1, 18, 18], 6, "none")


WEIGHTS = [[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]  # nobody needs the third expert
MIXTURES = {
    "deep": ([mlp([70, 40, 33, 20])] * 3, [70], [mlp([20, 9, 1], False), mlp([20, 3], False)]),
    "one layer, no towers": ([mlp([5, 3])] * 3, [5], []),
    "towers of another kind": ([mlp([70, 20])] * 3, [70], [mlp([20, 9, 1], False, norm="group"), mlp([20, 3])]),
    "images": ([cnn] * 3, [1, 18, 18], [mlp([6, 5, 2], False)] * 2),
}


@needs_kernel
@pytest.mark.parametrize("size", [300, 17, 1])
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_and_its_gradients_are_those_of_the_layers(size, kind, rng):
    experts, shape, towers = MIXTURES[kind]
    inputs, found = rng.randn(size, *shape).astype("float32"), []
    for computing in (kernels, None):
        network, ends = mixture(experts, WEIGHTS, computing, towers)
        x = paddle.to_tensor(inputs, stop_gradient=kind == "images")
        outputs = network.mix(x, towers=ends).outputs
        wanted = [paddle.to_tensor(np.random.RandomState(t).randn(*o.shape), o.dtype) for t, o in enumerate(outputs)]
        paddle.add_n([(a * b).sum() for a, b in zip(outputs, wanted)]).backward()
        gradients = {} if kind == "images" else {"x": x.grad.numpy()}
        for name, parameter in [*network.experts.named_parameters(), *nn.LayerList(ends).named_parameters("towers")]:
            no_gradient = np.zeros(parameter.shape, "float32")
            gradients[name] = no_gradient if parameter.grad is None else parameter.grad.numpy()
        found.append(([output.numpy() for output in outputs], gradients))
    (ours, gradients), (layers, of_layers) = found
    for a, b in zip(ours, layers):
        assert_near(a, b, ROUNDING)
    for name, gradient in of_layers.items():
        scale = np.abs(gradient).max(initial=1e-30)
        assert_near(gradients[name] / scale, gradient / scale, ROUNDING, name)
    assert not any(gradients[name].any() for name in gradients if name.startswith("2."))


@needs_kernel
def test_the_weights_gradient_is_the_product_with_the_outputs(rng):
    x, weights = paddle.randn([40, 6]), paddle.to_tensor([[0.3, 0.7], [0.5, 0.0]], stop_gradient=False)
    experts = mixture([mlp([6, 9, 4])] * 2, [[1.0, 1.0]], None)[0].experts
    wanted = paddle.randn([2, 40, 4])
    mixtures = kernels.mlps(x, weights, [expert.linear_parameters() for expert in experts], 4, [])
    (paddle.stack(mixtures) * wanted).sum().backward()
    outputs = np.stack([expert(x).numpy() for expert in experts])
    expected = np.einsum("tbh,nbh->tn", wanted.numpy(), outputs)
    assert_near(weights.grad.numpy() / abs(expected).max(), expected / abs(expected).max(), ROUNDING)


@needs_kernel
def test_a_mixture_whose_gates_have_lost_all_weight_is_zero():
    for experts, shape, _ in MIXTURES.values():
        network, _ = mixture(experts, [[0.0] * 3] * 2, kernels)
        assert not any(output.numpy().any() for output in network(paddle.randn([5, *shape])).outputs)


class Doubled(net.MLP):
    """An MLP of a user's that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class GateByExample(net.Gate):
    """A gate of a user's whose weights are by example, though it reads no features."""

    def forward(self, features=None):
        return paddle.full([5, self.expert_num], 0.5), None


@pytest.mark.parametrize(
    "other", [{"norm": "group"}, {"dropout": 0.1}, {"activation": "silu"}, {"activate_output": False}]
)
def test_experts_that_are_not_plain_are_computed_by_their_layers(other):
    def experts(sizes, **keys):
        return net.MLP(6, sizes, **{"activate_output": True, **keys})

    for pair in ([experts([8, 4], **other)] * 2, [experts([8, 4]), experts([9, 4])]):
        net.SparseMixture(pair, [net.FixedGate([0.5, 0.5])], kernels=NeverCalled())(paddle.randn([5, 6]))
    for gate in (net.SoftmaxGate(2, 6), GateByExample(2)):
        net.SparseMixture([experts([4]), experts([4])], [gate], kernels=NeverCalled())(paddle.randn([5, 6]))
    doubled = Doubled(6, [4], activate_output=True)
    net.SparseMixture([doubled], [net.FixedGate([1.0])], kernels=NeverCalled())(paddle.randn([5, 6]))


CHANGES = {
    "a hook on a layer": lambda network: network.experts[0].layers[-2].register_forward_post_hook(lambda *_: None),
    "a hook on an expert": lambda network: network.experts[1].register_forward_pre_hook(lambda *_: None),
    "an expert in evaluation": lambda network: network.experts[1].eval(),
    "a hook on the layers": lambda network: network.experts[0].layers.register_forward_post_hook(lambda *_: None),
    "no bias": lambda network: setattr(network.experts[0].layers[-2], "bias", None),
    "float64": lambda network: network.to(dtype="float64"),
    "another layer": lambda network: network.experts[0].layers.__setitem__(
        len(network.experts[0].layers) - 1, nn.Silu()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["deep", "images"])
def test_a_network_that_a_user_has_changed_is_computed_by_its_layers(kind, change):
    experts, shape, _ = MIXTURES[kind]
    network, _ = mixture(experts, [[0.5, 0.5, 0.0]], NeverCalled())
    CHANGES[change](network)
    network(paddle.randn([5, *shape]).astype(network.experts[0].parameters()[0].dtype))


def test_sizes_that_do_not_fit_are_refused_before_the_kernels():
    network, _ = mixture(*MIXTURES["deep"][:1], WEIGHTS, NeverCalled())
    network.expert_size = 21
    with pytest.raises(ValueError, match="an expert's output"):
        network(paddle.randn([5, 70]))
    network, towers = mixture(
        *MIXTURES["deep"][:1], WEIGHTS, kernels if kernels.load() else None, [mlp([21, 3], False)] * 2
    )
    with pytest.raises(ValueError, match="the input of an MLP"):
        network.mix(paddle.randn([5, 70]), towers=towers)
    with pytest.raises(ValueError, match="2 gates, but 1 towers"):
        network.mix(paddle.randn([5, 70]), towers=towers[:1])


def test_gates_and_towers_that_a_user_has_changed_are_computed_by_their_layers():
    network, towers = mixture(*MIXTURES["deep"][:1], WEIGHTS, kernels if kernels.load() else None, MIXTURES["deep"][2])
    seen = []
    towers[0].layers[0].register_forward_post_hook(lambda *_: seen.append("tower"))
    network.mix(paddle.randn([5, 70]), towers=towers)
    gate = net.DSelectKGate(3, 2)
    gate.register_forward_pre_hook(lambda *_: seen.append("gate"))
    net.SparseMixture([mlp([4, 2])() for _ in range(3)], [gate], kernels=kernels if kernels.load() else None)(
        paddle.randn([5, 4])
    )
    assert seen == ["tower", "gate"]


@needs_kernel
def test_a_tower_that_a_user_has_made_wider_gives_its_new_width():
    network, towers = mixture(*MIXTURES["deep"][:1], WEIGHTS, kernels, MIXTURES["deep"][2])
    towers[0].layers[2] = nn.Linear(9, 4)
    assert [o.shape[1] for o in network.mix(paddle.randn([5, 70]), towers=towers).outputs] == [4, 3]


@needs_kernel
def test_a_tower_much_wider_than_the_others_does_not_widen_their_outputs(rng):
    """The kernel gives the outputs one width, so Paddle's layers compute these towers."""
    inputs, found = paddle.to_tensor(rng.randn(40, 6).astype("float32")), []
    for computing in (kernels, None):
        made = [mlp([4, width], False) for width in (50, 1, 1)]
        network, towers = mixture([mlp([6, 4])] * 3, WEIGHTS[:1] * 3, computing, made)
        with mock.patch.object(kernels, "mlps", wraps=kernels.mlps) as called:
            found.append(network.mix(inputs, towers=towers).outputs)
        assert computing is None or called.call_args.args[-1] == []
    for ours, theirs in zip(*found):
        assert_near(ours.numpy(), theirs.numpy(), ROUNDING)


@needs_kernel
def test_experts_of_numbers_read_images_too():
    network, _ = mixture([mlp([12, 4])] * 3, WEIGHTS, kernels)
    x = paddle.randn([5, 1, 3, 4])
    np.testing.assert_array_equal(network(x).outputs[0], network(paddle.flatten(x, 1)).outputs[0])


@needs_kernel
def test_a_network_with_kernels_is_copied_and_pickled():
    network = build.build(HyperParameters.from_config(config(expert_num=4, kernels=True, **ON_TABLE)))
    assert copy.deepcopy(network).kernels.mlps is kernels.mlps
    assert pickle.loads(pickle.dumps(network.kernels)).gates is kernels.gates


@needs_kernel
def test_the_number_of_threads_changes_no_bit_of_mixtures_and_steps(monkeypatch, rng):
    inputs, gradient = rng.randn(300, 70).astype("float32"), rng.randn(100_003).astype("float32")
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(kernels, "THREADS", threads)
        network, towers = mixture(*MIXTURES["deep"][:1], WEIGHTS, kernels, MIXTURES["deep"][2])
        paddle.add_n([o.sum() for o in network.mix(paddle.to_tensor(inputs), towers=towers).outputs]).backward()
        weight = paddle.ones([100_003])
        states = [paddle.zeros([100_003]), paddle.zeros([100_003]), paddle.full([1], 0.9), paddle.full([1], 0.999)]
        tensors = [weight, paddle.to_tensor(gradient), *states]
        kernels.update(tensors, paddle.to_tensor(0.1), 2, [0.9, 0.999, 1e-8], [1.0], [0.1])
        found.append([p.grad.numpy() for e in list(network.experts)[:2] for p in e.parameters()] + [weight.numpy()])
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


@needs_kernel
def test_a_second_copy_of_the_package_uses_the_operators_that_the_process_has(monkeypatch):
    kernels.load.cache_clear()
    assert kernels.load()  # Paddle ends the process where operators are registered twice
    monkeypatch.setattr(paddle, kernels.MARK, "another.so")
    kernels.load.cache_clear()
    with pytest.raises(ValueError, match="has the operators of another copy of the package"):
        kernels.chosen(True)
    kernels.load.cache_clear()


def test_a_gate_with_weights_for_other_experts_is_refused_before_the_kernel():
    gate = net.FixedGate([0.5, 0.5])
    gate.weights = np.ones(3, "float32")
    network = net.SparseMixture(
        [net.MLP(6, [4], activate_output=True) for _ in range(2)], [gate], kernels=NeverCalled()
    )
    with pytest.raises(ValueError, match="a gate's weights"):
        network(paddle.randn([5, 6]))


# ---------------------------------------------------------------------------------------------------- gates


def gated(expert_num, top_k, gamma, logits, computing):
    """(weights, penalties) of two gates in training, and the logits' gradients of a loss of all of these."""
    gates = [net.DSelectKGate(expert_num, top_k, gamma) for _ in logits]
    network = net.SparseMixture([mlp([3, 2])() for _ in range(expert_num)], gates, kernels=computing)
    for gate, value in zip(gates, logits):
        gate.selector_logits.set_value(value.reshape(-1).astype("float32"))
        gate.mixing_logits.set_value(np.linspace(-1, 1, top_k).astype("float32"))
    mixed = network(paddle.zeros([1, 3]))
    terms = [(w * paddle.arange(1, expert_num + 1, dtype="float32")).sum() for w in mixed.weights]
    paddle.add_n([*terms, *[2 * paddle.sum(term) for term in mixed.penalties.values()]]).backward()
    gradients = [parameter.grad.numpy() for gate in gates for parameter in gate.parameters()]
    return [w.numpy() for w in mixed.weights], {n: float(t) for n, t in mixed.penalties.items()}, gradients


@needs_kernel
@pytest.mark.parametrize("expert_num, top_k, gamma", [(2, 1, 1.0), (5, 3, 0.5), (8, 2, 1.0), (40, 4, 3.0)])
def test_gates_weights_penalties_and_gradients_are_those_of_the_layers(expert_num, top_k, gamma, rng):
    digits = net.digit_num(expert_num)
    # within the band, partly outside it, and at its edges; code 0 is an expert's, so that a selector reaches one
    logits = rng.uniform(-0.7, 0.3, [2, top_k, digits]) * gamma
    logits[1, 0], logits[0, 0, 0] = -0.5 * gamma, np.nextafter(np.float32(-0.5 * gamma), np.float32(0))
    found = [gated(expert_num, top_k, gamma, logits, computing) for computing in (kernels, None)]
    (weights, penalties, gradients), (of_layers, wanted, their_gradients) = found
    for ours, theirs in zip(weights, of_layers):
        np.testing.assert_array_equal(ours > 0, theirs > 0)  # the same experts are skipped
        assert_near(ours, theirs, ROUNDING)
    assert penalties.keys() == wanted.keys() and ("reachability" in penalties) == (expert_num in (5, 40))
    for name, value in wanted.items():
        assert penalties[name] == pytest.approx(value, rel=ROUNDING, abs=ROUNDING)
    for ours, theirs in zip(gradients, their_gradients):
        scale = np.abs(theirs).max(initial=1.0)
        assert_near(ours / scale, theirs / scale, ROUNDING)


@needs_kernel
@pytest.mark.parametrize("gamma", [0.03, 0.12, 0.7])
def test_at_the_edge_of_the_band_the_same_experts_are_skipped(gamma):
    """Where gamma is no power of two, its inverse is rounded, in the same way."""
    edge = np.float32(-gamma / 2)
    above, below = np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(-1))
    for logit in (below, edge, above, np.nextafter(above, np.float32(0))):
        weights = [gated(2, 1, gamma, np.full([1, 1, 1], logit), computing)[0][0] for computing in (kernels, None)]
        np.testing.assert_array_equal(*[of_way > 0 for of_way in weights])


@needs_kernel
def test_a_loss_without_penalties_or_of_penalties_alone_has_gradients():
    for part in (lambda mixed: mixed.outputs[0].sum(), lambda mixed: mixed.penalties["entropy"].sum()):
        gate = net.DSelectKGate(4, 2)
        network = net.SparseMixture([mlp([3, 2])() for _ in range(4)], [gate], kernels=kernels)
        part(network(paddle.randn([5, 3]))).backward()
        assert gate.selector_logits.grad.numpy().any()


@needs_kernel
def test_a_logit_that_is_not_a_number_is_not_lost():
    logits = np.full([1, 2, 2], 0.1)
    logits[0, 1, 0] = np.nan
    weights, penalties, _ = gated(4, 2, 1.0, logits, kernels)
    assert np.isnan(weights[0]).all() and np.isnan(penalties["entropy"])


# --------------------------------------------------------------------------------------------------- inputs


def joined(fields, width, computing, rng, **lists):
    """(output, the embeddings' gradient) of a ``TableInput``; ``lists`` of it, each with up to four ids."""
    layer = net.TableInput(3, fields, width, kernels=computing, **lists)
    layer.embedding.weight.set_value(rng.randn(*layer.embedding.weight.shape).astype("float32"))
    ids = [np.stack([rng.randint(0, size, 300) for size in fields], axis=1)]
    for size in lists.get("list_sizes", ()):
        is_there = np.arange(4) < rng.randint(0, 5, [300, 1])
        ids.append(np.where(is_there, rng.randint(0, size, [300, 4]), -1))
    output = layer(paddle.to_tensor(rng.randn(300, 3).astype("float32")), *map(paddle.to_tensor, ids))
    (output * paddle.to_tensor(rng.randn(*output.shape).astype("float32"))).sum().backward()
    return output.numpy(), layer.embedding.weight.grad.numpy()


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("fields", "width"), [([5], 1), ([4, 1, 9], 3), (range(1, 21), 8), ([1000, 2], 5)])
def test_joined_inputs_and_the_embeddings_gradient_are_those_of_the_layers(fields, width, threads, monkeypatch):
    monkeypatch.setattr(kernels, "THREADS", threads)
    found = [joined(list(fields), width, computing, np.random.RandomState(0)) for computing in (kernels, None)]
    for ours, theirs in zip(*found):  # both add in the batch's order
        np.testing.assert_array_equal(ours, theirs)


@needs_kernel
@pytest.mark.parametrize("shared", [[], [[0, 2]], [[0, 1]]])
def test_lists_beside_joined_inputs_change_nothing(shared):
    """With [0, 1] shared, Paddle's layers compute both."""
    lists = {"list_sizes": [9, 4], "shared_embeddings": shared}
    found = [joined([9, 9], 3, computing, np.random.RandomState(0), **lists) for computing in (kernels, None)]
    np.testing.assert_array_equal(*(output for output, _ in found))
    # a gradient adds up some 300 products of order 1 in another order: 300 x 6e-8
    np.testing.assert_allclose(*(gradient for _, gradient in found), rtol=0, atol=2e-5)


@needs_kernel
@pytest.mark.parametrize("id", [-1, 4])
def test_an_id_out_of_its_fields_range_is_named(id):
    layer = net.TableInput(1, [3, 4, 5], 2, kernels=kernels)
    with pytest.raises(Exception, match=f"the id {id} of sparse field 1 is not from 0 to 3"):
        layer(paddle.zeros([2, 1]), paddle.to_tensor([[0, 0, 0], [1, id, 0]]))


@needs_kernel
def test_features_and_ids_of_unequal_numbers_are_refused():
    layer = net.TableInput(3, [5], 2, kernels=kernels)
    for rows in (1, 3):
        with pytest.raises(Exception, match=f"there are {rows} rows of dense features, but 2 rows of ids"):
            layer(paddle.zeros([rows, 3]), paddle.zeros([2, 1], "int64"))
    for fields, ends, words in (
        (2, [5], "ids of 2 sparse fields, but vocabularies of 1"),
        (1, [6], "of 5 ids.*have 6"),
    ):
        with pytest.raises(Exception, match=words):
            kernels.join(paddle.zeros([2, 3]), paddle.zeros([2, fields], "int64"), layer.embedding.weight, ends)


@pytest.mark.parametrize("reason", ["evaluation", "dense gradient", "sparse", "float64"])
def test_inputs_that_the_kernel_does_not_take_are_joined_by_paddle(reason):
    layer = net.TableInput(1, [3], 2, sparse_gradients=reason == "sparse", kernels=NeverCalled())
    dense, ids = paddle.zeros([2, 1]), paddle.zeros([2, 1], "int64")
    dense.stop_gradient = reason != "dense gradient"
    if reason == "evaluation":
        layer.eval()
    if reason == "float64":
        layer, dense = layer.to(dtype="float64"), dense.astype("float64")
    assert layer(dense, ids).shape == [2, 3]


# -------------------------------------------------------------------------------------------------- threads


@needs_kernel
def test_kernels_run_in_several_threads_and_in_a_forked_process(monkeypatch):
    """The helping threads are one set for a process, and a fork has none of its parent's."""
    monkeypatch.setattr(kernels, "THREADS", 3)
    size = 300_000

    def stepped(_):
        weight = paddle.full([size], 2.0)
        for _ in range(5):
            kernels.update([weight, paddle.ones([size])], paddle.to_tensor(0.1), 0, [0.0, 0.0], [1.0], [0.0])
        return float(weight.min()), float(weight.max())

    one = stepped(None)
    assert one == pytest.approx((1.5, 1.5), rel=1e-6)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stepped, range(8))) == [one] * 8
    if os.path.isdir("/proc/self/task"):
        child = os.fork()
        if not child:
            code = 1
            try:
                before = len(os.listdir("/proc/self/task"))
                is_right = stepped(None) == one
                code = 0 if is_right and len(os.listdir("/proc/self/task")) == before + 2 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --------------------------------------------------------------------------------------------- the optimizer

OPTIMIZERS = {
    "sgd": {"class": "sgd", "momentum": 0.0},
    "momentum": {"class": "sgd", "momentum": 0.9},
    "adam": {"class": "adam"},
    "adamw": {"class": "adamw"},
}


# A step of each way rounds some ten times a number of at most 1 here.
ONE_STEP = 1e-6


@needs_kernel
@pytest.mark.parametrize("way", ["eager", "static"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_all_parameters_at_once_is_that_of_one_by_one(way, optimizer, rng, monkeypatch):
    """With weight decay, clipping, and a rate of the gates' own; a first step, so that the gradients are the same."""
    keys = {"weight_decay": 0.01, "clip_norm": 0.5, "gate_learning_rate_factor": 3.0, **OPTIMIZERS[optimizer]}
    keys = {f"optimizer__{key}": value for key, value in keys.items()}
    batch, states = table_batches(rng, 1)[0], []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(training, "_optimizers", lambda hyper: paddle.optimizer)
        run = start(way, config(expert_num=4, kernels=True, **keys, **ON_TABLE))
        run.step(batch)
        states.append({**run.state(), **optimizer_state(run)})
    ours, theirs = states
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_near(ours[name], value, ONE_STEP, name)


def optimizer_state(run):
    if hasattr(run, "optimizer"):
        return {n: np.asarray(v) for n, v in run.optimizer.state_dict().items() if "LR_Scheduler" not in n}
    return {n: np.asarray(v) for n, v in run.program.state_dict("opt", run.scope).items()}


@needs_kernel
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_many_steps_at_once_are_those_of_one_by_one(optimizer, rng, monkeypatch):
    """With gradients that are given, for parameters that threads share or not, with their own regularizers or not."""
    sizes, steps, found = [100_003, 7, 7, 7, 7], 8, []
    own = [None, None, paddle.regularizer.L1Decay(0.2), *[paddle.regularizer.L2Decay(x) for x in (0.0, 0.3)]]
    attrs = [paddle.ParamAttr(regularizer=regularizer) for regularizer in own]
    values = [[rng.uniform(-1, 1, size).astype("float32") for size in sizes] for _ in range(1 + steps)]
    keys = {f"optimizer__{key}": value for key, value in OPTIMIZERS[optimizer].items()}
    hyper = HyperParameters.from_config(config(kernels=True, optimizer__weight_decay=0.1, **keys))
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(training, "_optimizers", lambda hyper: paddle.optimizer)
        parameters = [paddle.create_parameter([size], "float32", attr=attr) for size, attr in zip(sizes, attrs)]
        network = types.SimpleNamespace(gates=nn.LayerList())
        stepped = training.build_optimizer(network, hyper, 0.01, parameters)
        for parameter, value in zip(parameters, values[0]):
            parameter.set_value(value)
        for gradients in values[1:]:
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = paddle.to_tensor(gradient)
            stepped.step()
        found.append([parameter.numpy() for parameter in parameters])
    for ours, theirs in zip(*found):
        assert_near(ours, theirs, steps * ONE_STEP)


@needs_kernel
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sparse_gradients_and_other_dtypes_are_left_to_paddle(optimizer):
    hyper = HyperParameters.from_config(
        config(kernels=True, **{f"optimizer__{key}": value for key, value in OPTIMIZERS[optimizer].items()})
    )
    table = nn.Embedding(10, 4, sparse=True, weight_attr=paddle.nn.initializer.Constant(1.0))
    double = paddle.create_parameter([3], "float64", default_initializer=nn.initializer.Constant(1.0))
    parameters = [table.weight, double] if optimizer == "sgd" else [table.weight]  # Paddle's Adam takes no mixture
    stepped = training.build_optimizer(types.SimpleNamespace(gates=nn.LayerList()), hyper, 0.1, parameters)
    (table(paddle.to_tensor([3, 7])).sum() + double.sum().astype("float32")).backward()
    stepped.step()
    moved = (table.weight.numpy() != 1).any(axis=1)
    assert moved.nonzero()[0].tolist() == [3, 7]
    assert optimizer != "sgd" or (double.numpy() != 1).all()


@needs_kernel
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors are not slow there")
def test_moments_that_are_no_normal_numbers_any_more_become_zero():
    """They would make a step slower, on every thread, and change no parameter."""
    size, tiny = 300_000, float(np.float32(1e-40))
    moments = [paddle.full([size], tiny), paddle.full([size], tiny)]
    weight, states = paddle.ones([size]), [*moments, paddle.full([1], 0.9), paddle.full([1], 0.999)]
    tensors = [weight, paddle.zeros([size]), *states]
    kernels.update(tensors, paddle.to_tensor(0.1), 2, [0.9, 0.999, 1e-8], [1.0], [0.0])
    assert not any(moment.numpy().any() for moment in moments) and (weight.numpy() == 1).all()
    assert float(np.float32(tiny) * np.float32(0.5)) > 0  # the caller's own numbers are as before


@needs_kernel
def test_the_update_says_which_parameters_are_not_finite():
    parameters = [paddle.ones([40_000]), paddle.ones([3])]
    gradients = [paddle.zeros([40_000]), paddle.to_tensor([0.0, np.inf, 0.0])]
    finite = kernels.update([*parameters, *gradients], paddle.to_tensor(0.1), 0, [0.0, 0.0], [1.0, 1.0], [0.0, 0.0])
    assert finite.tolist() == [1, 0]


@needs_kernel
def test_gradients_are_pruned_as_by_paddle():
    from paddle.autograd import ir_backward

    paddle.enable_static()
    with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
        inputs = [paddle.create_parameter([2], "float32") for _ in range(3)]
        unused = paddle.create_parameter([2], "float32")
        output = paddle.concat([*inputs, inputs[0] * inputs[1]]).sum()
        theirs = ir_backward.prepare_backward_prune_set([*inputs, unused], [output])
        with optimizers._linear_pruning():
            ours = ir_backward.prepare_backward_prune_set([*inputs, unused], [output])
        assert ir_backward.prepare_backward_prune_set.__module__ == ir_backward.__name__
        assert [{value._value.hash() for value in values._set} for values in ours] == [
            {value._value.hash() for value in values._set} for values in theirs
        ]


# ------------------------------------------------------------------------------------------- whole trainings


@needs_kernel
@pytest.mark.parametrize("keys", [IMAGES, ON_TABLE], ids=["images", "table"])
@pytest.mark.parametrize("way", ["eager", "to_static", "static"])
def test_a_training_with_kernels_is_that_without(way, keys, rng):
    """By SGD, whose steps have the gradients' own rounding."""
    batches = make_batches(rng, 3) if keys is IMAGES else table_batches(rng, 3, missing=True)
    begun, ended = {}, []
    for kernel in (True, False):
        run = start(way, config(expert_num=4, kernels=kernel, optimizer__class="sgd", **keys))
        run.set(begun)
        begun = run.state()
        losses = [float(run.step(batch)[0]) for batch in batches]
        ended.append((losses, run.state()))
    assert_near(ended[0][0], ended[1][0], GRADIENTS_32)
    for name, value in ended[1][1].items():
        assert_near(ended[0][1][name], value, GRADIENTS_32, name)


def test_kernels_that_are_wanted_and_missing_are_named(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(kernels, "library", lambda: tmp_path / "missing.so")
    monkeypatch.setattr(kernels, "SUPPORTED", True)
    kernels.load.cache_clear()
    try:
        assert kernels.chosen("auto") is None
        with caplog.at_level("INFO"):
            build.build(HyperParameters.from_config(config(kernels="auto", expert_num=2)))
        assert "kernels is auto, and Paddle's layers compute" in caplog.text
        with pytest.raises(ValueError, match=r"hyper_parameters.kernels is true, but .*missing.so is missing"):
            kernels.chosen(True)
    finally:
        kernels.load.cache_clear()
