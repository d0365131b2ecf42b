"""The gates of net.py: formulas, gradients and exact zeros, against NumPy float64 and finite differences."""

import math

import numpy as np
import paddle
import pytest

import net
from support import oracles
from support.rounding import SUMS, assert_near
from support.seeds import random_state, seeded

SHAPES = [(2, 1), (2, 2), (3, 2), (4, 2), (6, 3), (8, 2), (8, 8), (13, 4), (16, 4)]  # (n, k)
every_shape = pytest.mark.parametrize("expert_num,top_k", SHAPES)


def tensor(array, dtype="float64"):
    result = paddle.to_tensor(np.asarray(array), dtype=dtype)
    result.stop_gradient = False
    return result


def draw(expert_num, top_k, seed, gamma=1.0, spread=1.2):
    """Selector logits [k, m], some inside the band and some far outside, and mixing logits [k]."""
    rng = random_state(seed)
    return (rng.rand(top_k, net.digit_num(expert_num)) - 0.5) * spread * gamma, rng.randn(top_k)


def weights_of(z, w, expert_num, gamma=1.0):
    return net.gate_weights(net.single_expert_selectors(z, expert_num, gamma), w)


def settled_weights(z, w, expert_num):
    return weights_of(tensor(z, "float32"), tensor(w, "float32"), expert_num).numpy()


@pytest.mark.parametrize("gamma", [0.01, 1.0, 7.0])
def test_smooth_step_is_the_cubic_of_the_paper(gamma):
    t = np.linspace(-gamma, gamma, 401)
    x = tensor(t)
    y = net.smooth_step(x, gamma)
    assert_near(y.numpy(), [oracles.smooth_step(v, gamma) for v in t], 1e-14)
    y.sum().backward()
    assert_near(x.grad.numpy(), [oracles.smooth_step_slope(v, gamma) for v in t], 1e-12 / gamma)


@pytest.mark.parametrize("edge", [-0.5, 0.5])
def test_smooth_step_in_float32_is_0_or_1_only_where_its_slope_is_0(edge):
    """All 4000 floats on either side of the band's edge; the expanded cubic fails this."""
    t = np.array([edge], "float32").repeat(8001)
    t = (t.view("int32") + np.arange(-4000, 4001, dtype="int32")).view("float32")
    x = tensor(t, "float32")
    y, mirrored = net.smooth_step(x), net.smooth_step(-x)
    y.sum().backward()
    ended = (y.numpy() == 0) | (mirrored.numpy() == 0)
    assert ended.any() and not ended.all(), "the draw missed the case under test"
    assert (x.grad.numpy()[ended] == 0).all()
    assert (y.numpy() >= 0).all() and (y.numpy() <= 1).all()


def test_digit_num_is_the_logarithm_rounded_up():
    assert [net.digit_num(n) for n in (1, 2, 3, 4, 5, 8, 9, 64)] == [0, 1, 2, 2, 3, 3, 4, 6]


@every_shape
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_weights_and_their_jacobian_are_the_formula(expert_num, top_k, gamma):
    z, w = draw(expert_num, top_k, seed=3, gamma=gamma)
    q = weights_of(tensor(z), tensor(w), expert_num, gamma)
    assert_near(q.numpy(), oracles.gate(z, w, expert_num, gamma), 1e-14)
    by_z, by_w = jacobian(z, w, expert_num, "float64", gamma)
    slope = oracles.central_difference(lambda x: oracles.gate(x, w, expert_num, gamma), z)
    assert_near(by_z, slope, 1e-7 / gamma**3)  # a step of 1e-6: its square, times the third derivative
    assert_near(by_w, oracles.central_difference(lambda x: oracles.gate(z, x, expert_num, gamma), w), 1e-7)


def jacobian(z, w, expert_num, dtype, gamma=1.0):
    """d q_i / d z [n, k, m] and d q_i / d w [n, k]."""
    by_z, by_w = [], []
    for i in range(expert_num):
        tz, tw = tensor(z, dtype), tensor(w, dtype)
        weights_of(tz, tw, expert_num, gamma)[i].backward()
        by_z.append(tz.grad.numpy())
        by_w.append(tw.grad.numpy())
    return np.stack(by_z), np.stack(by_w)


@pytest.mark.parametrize("expert_num,top_k", [(4, 2), (6, 3), (8, 2), (16, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_a_weight_of_zero_has_a_slope_of_exactly_zero(expert_num, top_k, seed):
    z, w = draw(expert_num, top_k, seed, spread=3.0)
    z[:, 0] = 0.7 if seed % 2 else -0.7  # half of the codes are out for certain,
    z[0, 1:] /= 6  # and for the first selector those that begin 10 or 00 are not
    off = settled_weights(z, w, expert_num) == 0
    by_z, by_w = jacobian(z, w, expert_num, "float32")
    assert off.any() and not off.all(), "the draw missed the case under test"
    assert (by_z[off] == 0).all() and (by_w[off] == 0).all()  # no tolerance
    assert np.isfinite(by_z).all() and np.isfinite(by_w).all()


@pytest.mark.parametrize("expert_num,top_k", [(1, 1), *SHAPES])
@pytest.mark.parametrize("feature_size", [0, 5])
def test_weights_sum_to_one_or_to_less_where_a_code_has_no_expert(expert_num, top_k, feature_size, rng):
    gate = net.DSelectKGate(expert_num, top_k, gamma=0.5, feature_size=feature_size)
    q, r = gate(paddle.to_tensor(rng.rand(7, 5).astype("float32")))
    lead = [7] if feature_size else []
    assert q.shape == [*lead, expert_num] and r.shape == [*lead, top_k, expert_num]
    assert (q.numpy() >= 0).all()
    total = q.numpy().sum(axis=-1)
    if expert_num == 2 ** net.digit_num(expert_num):
        assert_near(total, np.ones(lead), 1e-5)  # products of 4, sums of 16 and of 8: some 30 roundings of 6e-8
    assert (total <= 1 + 1e-5).all()


@pytest.mark.parametrize("expert_num", [2, 5, 8, 16])
def test_an_experts_code_is_its_number_most_significant_digit_first(expert_num):
    for i in range(expert_num):
        z = [[0.5 if digit == "1" else -0.5 for digit in format(i, f"0{net.digit_num(expert_num)}b")]]
        assert settled_weights(z, [0.0], expert_num).tolist() == np.eye(expert_num)[i].tolist()


REGULARISERS = [(net.selector_entropy, oracles.entropy), (net.selector_reachability, oracles.reachability)]
both_regularisers = pytest.mark.parametrize("ours,oracle", REGULARISERS, ids=["entropy", "reachability"])


@both_regularisers
@pytest.mark.parametrize("expert_num,top_k", [(2, 1), (6, 3), (8, 2)])
def test_a_regulariser_and_its_slope_are_the_formula(ours, oracle, expert_num, top_k):
    z, _ = draw(expert_num, top_k, seed=5, spread=0.95)  # within the band: no selector's sum is 0
    x = tensor(z)
    value = ours(net.single_expert_selectors(x, expert_num))
    value.backward()
    assert float(value) == pytest.approx(oracle(oracles.selectors(z, expert_num, 1.0)), rel=1e-9)
    slope = oracles.central_difference(lambda v: oracle(oracles.selectors(v, expert_num, 1.0)), z)
    assert_near(x.grad.numpy(), slope, 1e-5 * max(1, np.abs(slope).max()))


@both_regularisers
def test_a_regulariser_of_a_per_example_gate_is_the_mean_over_the_examples(ours, oracle, rng):
    z = (rng.rand(5, 3, 3) - 0.5) * 0.95  # within the band
    mean = np.mean([oracle(oracles.selectors(one, 6, 1.0)) for one in z])
    assert float(ours(net.single_expert_selectors(tensor(z), 6))) == pytest.approx(mean, rel=1e-9)


def test_settled_selectors_have_no_entropy_and_no_slope():
    x = tensor([[0.6, -0.6, 0.6], [0.5, 0.5, -0.5]], "float32")
    terms = net.DSelectKGate(7, 2).penalties(net.single_expert_selectors(x, 7))
    term = 0.3 * terms["entropy"] + terms["reachability"]
    term.backward()
    assert float(term) == pytest.approx(2.0, abs=1e-5)  # reachability: 1 for each selector
    assert (x.grad.numpy() == 0).all()


def test_reachability_is_a_penalty_only_where_a_code_has_no_expert():
    for expert_num in (7, 8):
        gate = net.DSelectKGate(expert_num, 2)
        assert ("reachability" in gate.penalties(gate()[1])) == (expert_num == 7)


@pytest.mark.usefixtures("float64")
def test_a_per_example_gate_is_linear_in_the_features(rng):
    gate = net.DSelectKGate(6, 2, gamma=2.0, feature_size=4)
    x = rng.randn(3, 4)
    values = {name: rng.randn(*p.shape) * 0.4 for name, p in gate.named_parameters()}
    for name, p in gate.named_parameters():
        p.set_value(values[name])
    for row, weights in zip(x, gate(paddle.to_tensor(x))[0].numpy()):
        z = (row @ values["selector_weight"] + values["selector_logits"]).reshape(2, 3)
        w = row @ values["mixing_weight"] + values["mixing_logits"]
        assert_near(weights, oracles.gate(z, w, 6, 2.0), 1e-13)  # sums of 4: rounded by 1e-15


@pytest.mark.parametrize("feature_size", [0, 300])
def test_initial_values_lie_in_the_stated_ranges(feature_size):
    for name, p in net.DSelectKGate(8, 2, gamma=0.5, feature_size=feature_size).named_parameters():
        bound = 0.005 if name.startswith("selector") else 0.05
        greatest = np.abs(p.numpy()).max()
        assert 0 < greatest <= bound
        if p.size >= 600:  # a uniform draw without a tenth of its range: one seed of 1e27
            assert greatest > 0.9 * bound


# ---------------------------------------------------------------------------- the gates to compare with


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_weights_are_a_softmax_over_the_largest_logits_and_zero_elsewhere(top_k, rng):
    gate, x = net.TopKGate(4, top_k, 6), rng.randn(50, 6)
    for q, h in zip(gate(paddle.to_tensor(x))[0].numpy(), x @ gate.weight.numpy()):
        largest = np.argsort(-h)[:top_k]
        e = np.exp(h[largest] - h.max())
        expected = np.zeros(4)
        expected[largest] = e / e.sum()
        assert_near(q, expected, SUMS)
        assert np.count_nonzero(q) == top_k


@pytest.mark.usefixtures("float64")
def test_noisy_top_k_has_noise_in_training_alone_and_the_balance_of_shazeer(rng):
    """Its noise is all that it draws, so the same seed gives it again."""
    gate, x = net.TopKGate(5, 2, 6, noisy=True), rng.randn(40, 6)
    gate.noise_weight.set_value(rng.randn(6, 5))
    paddle.seed(seeded(3))
    noise = paddle.randn([40, 5]).numpy()
    paddle.seed(seeded(3))
    weights, state = gate(paddle.to_tensor(x))
    clean = x @ gate.weight.numpy()
    scale = np.log1p(np.exp(x @ gate.noise_weight.numpy())) + 1e-2
    noisy = clean + scale * noise
    chosen = np.zeros_like(clean)
    for row, i in np.ndindex(40, 5):
        second = np.sort(np.delete(noisy[row], i))[-2]  # of the others
        chosen[row, i] = 0.5 * (1 + math.erf((clean[row, i] - second) / scale[row, i] / math.sqrt(2)))
    expected = sum(x.var() / (x.mean() ** 2 + 1e-10) for x in (weights.numpy().mean(axis=0), chosen.mean(axis=0)))
    assert float(gate.penalties(state)["balance"]) == pytest.approx(expected, abs=SUMS)
    gate.eval()
    first, again = (gate(paddle.to_tensor(x))[0].numpy() for _ in range(2))
    assert (first == again).all() and (first != weights.numpy()).any()


def test_random_fixed_gates_are_drawn_from_their_seed_and_have_no_parameter():
    first, again, other = (net.FixedGate.of_random_experts(8, 3, seed) for seed in (0, 0, 1))
    assert (first.weights == again.weights).all() and (first.weights != other.weights).any()
    assert sorted(first.weights)[-3:] == pytest.approx([1 / 3] * 3) and not list(first.parameters())
