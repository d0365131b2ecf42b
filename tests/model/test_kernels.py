"""The kernels compute what Paddle's layers compute, forward and backward, or are left out."""

import numpy as np
import paddle
import pytest

import net
from dselect_k_model import build, kernels
from dselect_k_model.hyper_parameters import HyperParameters
from support.examples import TABLE, TASKS, table_batches
from support.rounding import GRADIENTS_32, assert_near
from support.ways import config, make_batches, start

KERNEL = kernels.cnn_blocks
needs_kernel = pytest.mark.skipif(not kernels.load(), reason="the kernels are not compiled, or Paddle is 2.x")
# A weight's gradient adds up 64 x 1024 products at most, in float32: u sqrt(N) is 1.5e-5 of its size, either way.
ROUNDING = 1e-4


def two_networks(shape, norm, kernel=KERNEL):
    """A CNN with the kernel and one without it, of equal parameters, none of them 0 or 1."""
    ours, layers = net.CNN(shape, norm, kernel), net.CNN(shape, norm)
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
@pytest.mark.parametrize("size, shape", [(37, [1, 36, 36]), (16, [3, 17, 20]), (1, [1, 28, 28])])
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


def test_the_layers_compute_where_a_kernel_would_not_do():
    def kernel(*args):
        raise AssertionError("it was called")

    ours, layers = two_networks([1, 36, 36], "batch", kernel)
    image = paddle.rand([2, 1, 36, 36])
    ours.eval(), layers.eval()
    np.testing.assert_array_equal(ours(image).numpy(), layers(image).numpy())
    ours.train()
    image.stop_gradient = False
    ours(image).sum().backward()
    assert image.grad is not None
    paddle.set_default_dtype("float64")
    try:
        net.CNN([1, 36, 36], "batch", kernel)(paddle.rand([2, 1, 36, 36]))
    finally:
        paddle.set_default_dtype("float32")


# ------------------------------------------------------------------------------------------ mixtures of MLPs


def mixture(sizes, expert_num, weights, kernel):
    """A mixture of MLP experts, by the kernel or without it, of parameters that a seed decides."""
    paddle.seed(3)
    experts = [net.MLP(sizes[0], sizes[1:], activate_output=True) for _ in range(expert_num)]
    for parameter in [p for expert in experts for p in expert.parameters() if p.ndim == 1]:
        parameter.set_value(paddle.randn(parameter.shape) / 10)
    return net.SparseMixture(experts, [net.FixedGate(each) for each in weights], kernel=kernel)


@needs_kernel
@pytest.mark.parametrize("size", [300, 17, 1])
@pytest.mark.parametrize("sizes", [[70, 40, 33, 20], [5, 3]])
def test_a_mixture_and_its_gradients_are_those_of_the_layers(size, sizes, rng):
    """Of three experts, one of which nobody needs, and two gates."""
    image, weights = rng.randn(size, sizes[0]).astype("float32"), [[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]
    outputs_wanted, found = [paddle.to_tensor(rng.randn(size, sizes[-1]).astype("float32")) for _ in weights], []
    for kernel in (kernels.mlp_mixture, None):
        network, x = mixture(sizes, 3, weights, kernel), paddle.to_tensor(image, stop_gradient=False)
        outputs = network(x).outputs
        paddle.add_n([(a * b).sum() for a, b in zip(outputs, outputs_wanted)]).backward()
        gradients = {"x": x.grad.numpy()}
        for name, parameter in network.experts.named_parameters():
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
    experts = mixture([6, 9, 4], 2, [[1.0, 1.0]], None).experts
    tensors = [parameter for expert in experts for parameter in expert.parameters()]
    wanted = paddle.randn([2, 40, 4])
    (kernels.mlp_mixture(x, weights, tensors, 2, 4) * wanted).sum().backward()
    outputs = np.stack([expert(x).numpy() for expert in experts])
    expected = np.einsum("tbh,nbh->tn", wanted.numpy(), outputs)
    assert_near(weights.grad.numpy() / abs(expected).max(), expected / abs(expected).max(), ROUNDING)


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
    def kernel(*args):
        raise AssertionError("it was called")

    def experts(sizes, **keys):
        return net.MLP(6, sizes, **{"activate_output": True, **keys})

    for pair in ([experts([8, 4], **other)] * 2, [experts([8, 4]), experts([9, 4])]):
        net.SparseMixture(pair, [net.FixedGate([0.5, 0.5])], kernel=kernel)(paddle.randn([5, 6]))
    for gate in (net.SoftmaxGate(2, 6), GateByExample(2)):
        net.SparseMixture([experts([4]), experts([4])], [gate], kernel=kernel)(paddle.randn([5, 6]))
    doubled = Doubled(6, [4], activate_output=True)
    net.SparseMixture([doubled], [net.FixedGate([1.0])], kernel=kernel)(paddle.randn([5, 6]))


def test_a_gate_with_weights_for_other_experts_is_refused_before_the_kernel():
    gate = net.FixedGate([0.5, 0.5])
    gate.weights = np.ones(3, "float32")
    network = net.SparseMixture([net.MLP(6, [4], activate_output=True) for _ in range(2)], [gate], kernel=print)
    with pytest.raises(ValueError, match="a gate's weights"):
        network(paddle.randn([5, 6]))


# ------------------------------------------------------------------------------------------- whole trainings

IMAGES = {"expert_norm": "batch"}
ON_TABLE = {**TABLE, "tasks": TASKS, "expert_norm": "none", "expert_hidden_sizes": [12, 10]}


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
    kernels.load.cache_clear()
    try:
        assert kernels.chosen("cnn_blocks", "auto") is None
        with caplog.at_level("INFO"):
            build.build(HyperParameters.from_config(config(kernels="auto", expert_num=2)))
        assert "kernels is auto, but there are none" in caplog.text
        with pytest.raises(ValueError, match=r"hyper_parameters.kernels is true, but .*missing.so is missing"):
            kernels.chosen("cnn_blocks", True)
    finally:
        kernels.load.cache_clear()
