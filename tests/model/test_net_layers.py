"""The layers of net.py: what each computes, the arguments that it refuses, and a mixture in a user's own network."""

import math

import numpy as np
import paddle
import pytest

import net
from support.rounding import SUMS, assert_near
from support.seeds import seeded

pytestmark = pytest.mark.usefixtures("float64")


def test_max_pool_gives_a_window_of_nan_no_gradient():
    """Paddle adds it to the last place of the channel before; for the first one, beside its memory."""
    image = np.ones([1, 2, 4, 4], "float32")
    image[0, 0, 3, 3], image[0, 1, :2, :2] = 0.0, np.nan  # no maximum of its window; a window of NaN
    back = np.ones([1, 2, 2, 2], "float32")
    back[0, 1, 0, 0] = np.nan
    x = paddle.to_tensor(image, stop_gradient=False)
    gradient = paddle.grad(net.MaxPool()(x), x, paddle.to_tensor(back))[0].numpy()
    assert gradient[0, 0, 3, 3] == 0 and np.isfinite(gradient).all() and gradient.sum() == 7


def test_group_norm_takes_five_channels_together(rng):
    block = net.CNN([1, 16, 16], "group").blocks[1]
    x = rng.randn(3, 10, 12, 12)
    convolved = block[0](paddle.to_tensor(x)).numpy()  # [3, 20, 8, 8]
    groups = convolved.reshape(3, 4, 5 * 8 * 8)
    normed = (groups - groups.mean(axis=2, keepdims=True)) / np.sqrt(groups.var(axis=2, keepdims=True) + 1e-5)
    pooled = normed.reshape(3, 20, 4, 2, 4, 2).max(axis=(3, 5))
    assert_near(block(paddle.to_tensor(x)).numpy(), np.maximum(pooled, 0), SUMS)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_dropout_drops_its_share_of_hidden_numbers_in_training_alone(dropout):
    """Of 10000 hidden ones, averaged: those that stay are scaled up, so the mean stays, and its spread shows the share.

    The mean of 200 draws is off by spread / sqrt(200), their own spread by 1 / sqrt(400) of it: here six times that,
    which one seed of 1e8 exceeds.
    """
    mlp, width = net.MLP(1, [10000, 1], dropout=dropout), 10000
    for layer, value in zip([mlp.layers[0], mlp.layers[-1]], [1.0, 1.0 / width]):
        layer.weight.set_value(np.full(layer.weight.shape, value))
        layer.bias.set_value(np.zeros(layer.bias.shape))
    paddle.seed(seeded(1))
    means = np.array([mlp(paddle.ones([1, 1])).item() for _ in range(200)])
    spread = math.sqrt(dropout / (1 - dropout) / width)  # of the mean of scaled Bernoulli draws
    assert means.mean() == pytest.approx(1.0, abs=6 * spread / math.sqrt(200) + SUMS)
    assert means.std() == pytest.approx(spread, rel=6 / math.sqrt(400), abs=SUMS)
    mlp.eval()
    assert mlp(paddle.ones([1, 1])).item() == pytest.approx(1.0, abs=SUMS)


def test_a_table_is_joined_from_its_numeric_features_and_the_embeddings_of_its_ids(rng):
    layer, features, ids = net.TableInput(5, [4, 7], 3), rng.randn(12, 5), rng.randint(0, [4, 7], [12, 2])
    joined = layer(paddle.to_tensor(features), paddle.to_tensor(ids)).numpy()
    rows = layer.embedding.weight.numpy()
    expected = np.concatenate([features, rows[ids[:, 0]], rows[4 + ids[:, 1]]], axis=1)
    np.testing.assert_array_equal(joined, expected)


WRONG = {
    "top_k above n": (lambda: net.DSelectKGate(4, 9), "top_k is 9"),
    "no selector": (lambda: net.DSelectKGate(4, 0), "top_k is 0"),
    "no expert": (lambda: net.DSelectKGate(0, 1), "expert_num is 0"),
    "no band": (lambda: net.DSelectKGate(4, 2, gamma=-1.0), "gamma is -1.0"),
    "a band of nan": (lambda: net.smooth_step(paddle.zeros([1]), math.nan), "gamma is nan"),
    "half a feature": (lambda: net.DSelectKGate(4, 2, feature_size=1.5), "feature_size is 1.5"),
    "no rate": (lambda: net.DSelectKGate(4, 2, learning_rate_factor=0), "learning_rate_factor is 0"),
    "features of rank 3": (lambda: net.DSelectKGate(4, 2, feature_size=5)(paddle.zeros([2, 3, 5])), "features"),
    "no features": (lambda: net.DSelectKGate(4, 2, feature_size=5)(), "needs features"),
    "other features": (lambda: net.SoftmaxGate(4, 5)(paddle.zeros([2, 6])), "must be .any, 5"),
    "digits": (lambda: net.single_expert_selectors(paddle.zeros([2, 3]), 4), "4 experts have 2 digits"),
    "norm": (lambda: net.CNN([1, 36, 36], "layer"), "norm is 'layer'"),
    "small image": (lambda: net.CNN([1, 8, 8]), "8"),
    "image of rank 3": (lambda: net.CNN([1, 36, 36])(paddle.zeros([2, 36, 36])), "image has the shape"),
    "no layer": (lambda: net.MLP(3, []), "sizes is empty"),
    "dropout": (lambda: net.MLP(3, [2], dropout=1.0), "dropout is 1.0"),
    "no table": (lambda: net.TableInput(0), "dense_size is 0"),
    "no expert in a mixture": (lambda: net.SparseMixture([], [net.FixedGate([1.0])]), "at least one expert"),
    "gate of others": (lambda: net.SparseMixture([net.MLP(3, [2])], [net.DSelectKGate(4, 2)]), "there are 1 experts"),
    "negative weight": (lambda: net.FixedGate([1.0, -1.0]), "weights are"),
    "weights of others": (
        lambda: net.mix_needed_experts([net.MLP(3, [2])], paddle.zeros([4, 3]), [paddle.ones([2])], 2), "weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize("make,words", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("static", [False, True], ids=["eager", "static"])
def test_a_wrong_argument_is_named_with_its_range(make, words, static):
    (paddle.enable_static if static else paddle.disable_static)()
    program = paddle.static.program_guard(paddle.static.Program(), paddle.static.Program())
    with program, pytest.raises(ValueError, match=words):
        make()


def own_loss(x):
    """What a user writes: two gates over four experts. (loss, mixture)."""
    experts = [net.MLP(6, [16, 8], activate_output=True) for _ in range(4)]
    mixture = net.SparseMixture(experts, [net.DSelectKGate(4, 2), net.DSelectKGate(4, 2, feature_size=6)])
    outputs, _, penalties = mixture(x)
    return paddle.mean(paddle.concat(outputs) ** 2) + 0.1 * paddle.mean(penalties["entropy"]), mixture


def test_a_mixture_in_a_users_own_network_has_gradients(rng):
    loss, mixture = own_loss(paddle.to_tensor(rng.randn(5, 6)))
    loss.backward()
    assert all(p.grad is not None for p in mixture.gates.parameters())
    for words in ("DSelectKGate(expert_num=4, top_k=2, gamma=1.0, feature_size=6)", "in_size=6, out_size=8"):
        assert words in repr(mixture)


def test_a_mixture_in_a_users_own_program_trains(rng):
    paddle.enable_static()
    main, startup = paddle.static.Program(), paddle.static.Program()
    with paddle.static.program_guard(main, startup), paddle.static.scope_guard(paddle.static.Scope()):
        loss, _ = own_loss(paddle.static.data("x", [-1, 6], "float64"))
        paddle.optimizer.Adam(0.01).minimize(loss)
        executor, x = paddle.static.Executor(paddle.CPUPlace()), rng.randn(5, 6)
        executor.run(startup)
        losses = [float(executor.run(main, feed={"x": x}, fetch_list=[loss])[0]) for _ in range(20)]
    assert losses[-1] < losses[0]
