"""The gate's formulas, gradients and exact zeros, against NumPy float64 and finite differences."""

import numpy as np
import oracles
import paddle
import pytest

import net
import training

SHAPES = [(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 2), (8, 8), (13, 4), (16, 4)]  # (n, k)


def tensor(array, dtype="float64"):
    result = paddle.to_tensor(np.asarray(array), dtype=dtype)
    result.stop_gradient = False
    return result


def draw(expert_num, top_k, seed, gamma=1.0, spread=1.2):
    """Selector logits [k, m], some inside the band and some far outside, and mixing logits [k]."""
    rng = np.random.RandomState(seed)
    digits = net.digit_num(expert_num)
    return (rng.rand(top_k, digits) - 0.5) * spread * gamma, rng.randn(top_k)


def weights_of(z, w, expert_num, gamma=1.0):
    selectors = net.single_expert_selectors(z, expert_num, gamma)
    return net.gate_weights(selectors, w), selectors


@pytest.mark.parametrize("gamma", [0.01, 1.0, 7.0])
def test_smooth_step_is_the_papers_cubic(gamma):
    t = np.linspace(-gamma, gamma, 401)
    x = tensor(t)
    y = net.smooth_step(x, gamma)
    np.testing.assert_allclose(y.numpy(), [oracles.smooth_step(v, gamma) for v in t], atol=1e-14)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [oracles.smooth_step_slope(v, gamma) for v in t], atol=1e-12 / gamma)


@pytest.mark.parametrize("gamma", [0, -1.0, float("nan")])
def test_smooth_step_refuses_a_band_without_width(gamma):
    with pytest.raises(ValueError, match="gamma"):
        net.smooth_step(paddle.zeros([1]), gamma)


@pytest.mark.parametrize("edge", [-0.5, 0.5])
def test_in_float32_the_ends_are_reached_only_where_the_slope_is_zero(edge):
    """All 4000 floats on either side of the band's edge; the expanded cubic fails this."""
    t = np.array([edge], "float32").repeat(8001)
    t = (t.view("int32") + np.arange(-4000, 4001, dtype="int32")).view("float32")
    x = tensor(t, "float32")
    y = net.smooth_step(x)
    mirrored = net.smooth_step(-x)
    y.sum().backward()
    ended = (y.numpy() == 0) | (mirrored.numpy() == 0)
    assert ended.any() and not ended.all(), "the draw missed the case under test"
    assert (x.grad.numpy()[ended] == 0).all()
    assert (y.numpy() >= 0).all() and (y.numpy() <= 1).all()


@pytest.mark.parametrize("expert_num,top_k", [s for s in SHAPES if s[0] > 1])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_gate_equals_the_formula(expert_num, top_k, gamma):
    z, w = draw(expert_num, top_k, seed=3, gamma=gamma)
    q, r = weights_of(tensor(z), tensor(w), expert_num, gamma)
    np.testing.assert_allclose(r.numpy(), oracles.selectors(z, expert_num, gamma), atol=1e-14)
    np.testing.assert_allclose(q.numpy(), oracles.gate(z, w, expert_num, gamma), atol=1e-14)


@pytest.mark.parametrize("expert_num,top_k", [s for s in SHAPES if s[0] > 1])
def test_gate_jacobian_equals_finite_differences(expert_num, top_k):
    z, w = draw(expert_num, top_k, seed=4)
    by_z, by_w = gate_jacobian(z, w, expert_num, "float64")
    np.testing.assert_allclose(
        by_z, oracles.central_difference(lambda x: oracles.gate(x, w, expert_num, 1.0), z), atol=1e-7
    )
    np.testing.assert_allclose(
        by_w, oracles.central_difference(lambda x: oracles.gate(z, x, expert_num, 1.0), w), atol=1e-7
    )


def gate_jacobian(z, w, expert_num, dtype):
    """d q_i / d z [n, k, m] and d q_i / d w [n, k]."""
    by_z, by_w = [], []
    for i in range(expert_num):
        tz, tw = tensor(z, dtype), tensor(w, dtype)
        weights_of(tz, tw, expert_num)[0][i].backward()
        by_z.append(tz.grad.numpy())
        by_w.append(tw.grad.numpy())
    return np.stack(by_z), np.stack(by_w)


@pytest.mark.parametrize("expert_num,top_k", [(4, 2), (6, 3), (8, 2), (16, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_zero_weight_has_exactly_zero_slope(expert_num, top_k, seed):
    z, w = draw(expert_num, top_k, seed, spread=3.0)
    z[:, 0] = 0.7 if seed % 2 else -0.7  # half of the codes are out for certain
    weights = weights_of(tensor(z, "float32"), tensor(w, "float32"), expert_num)[0].numpy()
    by_z, by_w = gate_jacobian(z, w, expert_num, "float32")
    off = weights == 0
    assert off.any() and not off.all(), "the draw missed the case under test"
    assert (by_z[off] == 0).all() and (by_w[off] == 0).all()  # no tolerance
    assert np.isfinite(by_z).all() and np.isfinite(by_w).all()


@pytest.mark.parametrize("expert_num,top_k", SHAPES)
@pytest.mark.parametrize("feature_size", [0, 5])
def test_weights_are_a_partial_distribution(expert_num, top_k, feature_size, rng):
    gate = net.DSelectKGate(expert_num, top_k, gamma=0.5, feature_size=feature_size)
    features = paddle.to_tensor(rng.rand(7, 5).astype("float32"))
    q, r = gate(features)
    lead = [7] if feature_size else []
    assert q.shape == lead + [expert_num] and r.shape == lead + [top_k, expert_num]
    assert (q.numpy() >= 0).all()
    total = q.numpy().sum(axis=-1)
    if expert_num == 2 ** net.digit_num(expert_num):
        np.testing.assert_allclose(total, 1, atol=1e-6)
    else:
        assert (total <= 1 + 1e-6).all()


@pytest.mark.parametrize("expert_num,top_k", [(2, 1), (6, 3), (8, 2), (13, 4)])
def test_a_settled_gate_selects_at_most_k(expert_num, top_k):
    for seed in range(20):
        rng = np.random.RandomState(seed)
        z = rng.choice([-1.0, 1.0], [top_k, net.digit_num(expert_num)]) * (0.5 + rng.rand())
        q = weights_of(tensor(z, "float32"), tensor(rng.randn(top_k), "float32"), expert_num)[0].numpy()
        assert np.count_nonzero(q) <= top_k


@pytest.mark.parametrize("expert_num", [2, 5, 8, 16])
def test_every_expert_can_be_selected_most_significant_digit_first(expert_num):
    digits = net.digit_num(expert_num)
    for i in range(expert_num):
        z = np.array([[0.5 if c == "1" else -0.5 for c in format(i, f"0{digits}b")]])
        q = weights_of(tensor(z, "float32"), tensor([0.0], "float32"), expert_num)[0].numpy()
        assert q.tolist() == np.eye(expert_num)[i].tolist()


@pytest.mark.parametrize("expert_num,top_k", [(2, 1), (6, 3), (8, 2)])
def test_regularisers_equal_the_formulas_and_their_differences(expert_num, top_k):
    z, _ = draw(expert_num, top_k, seed=5)
    for ours, oracle in (
        (net.selector_entropy, oracles.entropy),
        (net.selector_reachability, oracles.reachability),
    ):
        x = tensor(z)
        value = ours(net.single_expert_selectors(x, expert_num))
        value.backward()
        np.testing.assert_allclose(float(value), oracle(oracles.selectors(z, expert_num, 1.0)), rtol=1e-9)
        slope = oracles.central_difference(lambda v, f=oracle: f(oracles.selectors(v, expert_num, 1.0)), z)
        np.testing.assert_allclose(x.grad.numpy(), slope, atol=1e-5 * max(1, np.abs(slope).max()))


def test_regularisers_of_a_per_example_gate_are_means_over_the_examples(rng):
    z = (rng.rand(5, 3, 3) - 0.5) * 1.2
    r = net.single_expert_selectors(tensor(z), 6)
    each = [oracles.selectors(one, 6, 1.0) for one in z]
    np.testing.assert_allclose(float(net.selector_entropy(r)), np.mean([oracles.entropy(x) for x in each]), rtol=1e-9)
    np.testing.assert_allclose(
        float(net.selector_reachability(r)), np.mean([oracles.reachability(x) for x in each]), rtol=1e-9
    )
    twice = net.single_expert_selectors(tensor(np.concatenate([z, z])), 6)
    np.testing.assert_allclose(float(net.selector_entropy(twice)), float(net.selector_entropy(r)), rtol=1e-12)


def test_settled_selectors_cost_nothing_and_have_no_slope():
    x = tensor([[0.6, -0.6, 0.6], [0.5, 0.5, -0.5]], "float32")
    gate = net.DSelectKGate(7, 2)
    terms = gate.penalties(net.single_expert_selectors(x, 7))
    term = 0.3 * terms["entropy"] + terms["reachability"]
    term.backward()
    np.testing.assert_allclose(float(term), 2.0, atol=1e-5)  # reachability: 1 for each selector
    assert (x.grad.numpy() == 0).all()


def test_reachability_is_only_for_numbers_that_are_no_power_of_two():
    for expert_num, expected in ((8, None), (7, 2.0)):
        gate = net.DSelectKGate(expert_num, 2)
        r = net.single_expert_selectors(tensor([[0.6, -0.6, 0.6], [-0.6, 0.6, -0.6]], "float32"), expert_num)
        term = gate.penalties(r).get("reachability")
        assert term is expected or float(term) == pytest.approx(expected, abs=1e-6)


def test_per_example_gate_is_linear_in_the_features(rng):
    gate = net.DSelectKGate(6, 2, gamma=2.0, feature_size=4)
    x = rng.randn(3, 4)
    values = {name: rng.randn(*p.shape) * 0.4 for name, p in gate.named_parameters()}
    for name, p in gate.named_parameters():
        p.set_value(values[name].astype("float32"))
    q, _ = gate(paddle.to_tensor(x.astype("float32")))
    for row, weights in zip(x, q.numpy()):
        z = (row @ values["selector_weight"] + values["selector_logits"]).reshape(2, 3)
        w = row @ values["mixing_weight"] + values["mixing_logits"]
        np.testing.assert_allclose(weights, oracles.gate(z, w, 6, 2.0), atol=1e-5)  # float32 products


def test_initial_values_lie_in_the_stated_ranges():
    for feature_size in (0, 300):
        gate = net.DSelectKGate(8, 2, gamma=0.5, feature_size=feature_size)
        for name, p in gate.named_parameters():
            bound = 0.005 if name.startswith("selector") else 0.05
            values = np.abs(p.numpy())
            assert values.max() <= bound and values.max() > bound / 10


def test_the_entropy_weights_ramp():
    assert training.entropy_ramp(0.3, "constant", 10).tolist() == [np.float32(0.3)]
    linear, cosine = (training.entropy_ramp(2.0, name, 4) for name in ("linear", "cosine"))
    np.testing.assert_allclose(linear, [0, 0.5, 1, 1.5, 2])
    np.testing.assert_allclose(cosine, [1 - np.cos(np.pi * t / 4) for t in range(5)], atol=1e-7)
