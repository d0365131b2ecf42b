"""The gate sparsemax: the projection onto the simplex, its exact zeros and its Jacobian."""

import itertools

import numpy as np
import paddle
import pytest

from dselect_k_model.gates.sparsemax import SparsemaxGate, sparsemax
from support import oracles
from support.rounding import assert_near

pytestmark = pytest.mark.usefixtures("float64")
# Sums of up to 64 numbers in [-2, 0]: some 200 operations on numbers up to 128, each rounded by 1e-16 of that
ROUNDING = 3e-12


def weights_of(logits, dtype="float64"):
    return sparsemax(paddle.to_tensor(np.asarray(logits), dtype=dtype)).numpy()


def slopes(function, logits, dtype="float64"):
    """d p_i / d z_j [n, n] of one row."""
    rows = []
    for i in range(len(logits)):
        z = paddle.to_tensor(np.asarray([logits]), dtype=dtype, stop_gradient=False)
        function(z)[0, i].backward()
        rows.append(z.grad.numpy()[0])
    return np.stack(rows)


def nearest_of_all_supports(z):
    """The point of the simplex nearest to z: the best of those nearest on each of its faces."""
    best = None
    for size in range(1, len(z) + 1):
        for face in map(list, itertools.combinations(range(len(z)), size)):
            p = np.zeros(len(z))
            p[face] = z[face] - (z[face].sum() - 1) / size
            if p.min() >= 0 and (best is None or ((p - z) ** 2).sum() < ((best - z) ** 2).sum()):
                best = p
    return best


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_weights_are_the_nearest_point_of_the_simplex(scale, rng):
    z = rng.randn(40, 6) * scale
    p, nearest = weights_of(z), np.stack([nearest_of_all_supports(row) for row in z])
    assert_near(p, nearest, ROUNDING)
    assert ((p == 0) == (nearest == 0)).all() and (p >= 0).all()


@pytest.mark.parametrize("expert_num", [1, 2, 7, 64])
def test_every_other_point_of_the_simplex_is_on_the_far_side(expert_num, rng):
    """p is the projection of z if (z - p) (v - p) <= 0 for each corner v of the simplex; and bisection finds it too."""
    z = rng.randn(30, expert_num)
    p = weights_of(z)
    assert_near(p.sum(axis=1), np.ones(30), ROUNDING)
    assert ((z - p) - ((z - p) * p).sum(axis=1, keepdims=True) <= 10 * ROUNDING).all()  # another 64 products up to 3
    assert_near(p, [oracles.entmax(row, 2.0) for row in z], ROUNDING)
    if expert_num == 64:
        assert (p == 0).mean() > 0.5, "the draw missed the case under test"


@pytest.mark.parametrize(
    "logits,weights",
    [
        ([0.3, 0.3, 0.3, 0.3], [0.25] * 4),
        ([2.0, 2.0, 0.5], [0.5, 0.5, 0]),
        ([1e30, -1e30, 0.0], [1, 0, 0]),
        ([-1e5, -1e5 - 0.5, -3e5], [0.75, 0.25, 0]),
        ([1.0, 0.0, -7.0], [1, 0, 0]),  # the second at the edge
    ],
)
def test_weights_of_chosen_logits(logits, weights):
    found = weights_of([logits])[0]
    assert_near(found, weights, 1e-10)  # 0.5 beside 1e5 is exact, 1e30 has no smaller logits near it
    assert ((found == 0) == (np.asarray(weights) == 0)).all()


@pytest.mark.parametrize("dtype,tolerance", [("float64", 1e-14), ("float32", 1e-6)])  # sums of up to 8 numbers up to 1
def test_the_jacobian_is_that_of_the_paper_and_exactly_0_outside_of_the_support(dtype, tolerance, rng):
    sizes = set()
    for z in rng.randn(20, 8) * np.linspace(0.1, 5, 20)[:, None]:
        found, s = slopes(sparsemax, z, dtype), (weights_of([z], dtype)[0] > 0).astype(float)
        assert_near(found, np.diag(s) - np.outer(s, s) / s.sum(), tolerance)
        assert (found[s == 0] == 0).all() and (found[:, s == 0] == 0).all()
        sizes.add(int(s.sum()))
    assert 1 in sizes and max(sizes) > 4, "the draw missed the case under test"


def test_slopes_are_the_differences_of_the_projection(rng):
    for z in rng.randn(10, 5):
        differences = oracles.central_difference(lambda x: oracles.entmax(x, 2.0), z)
        assert_near(slopes(sparsemax, z), differences, 1e-8)  # linear in pieces: rounding of 1e-15 over steps of 1e-6


def test_a_logit_that_is_nan_is_not_hidden():
    assert np.isnan(weights_of([[0.1, np.nan, 0.2]])).all()


def test_the_gate_is_sparsemax_of_a_linear_map(rng):
    gate, x = SparsemaxGate(5, 3), rng.randn(9, 3)
    weights, state = gate(paddle.to_tensor(x))
    assert_near(weights.numpy(), [oracles.entmax(row, 2.0) for row in x @ gate.weight.numpy()], ROUNDING)
    assert gate.per_example and gate.penalties(state) == {}
    with pytest.raises(ValueError, match="needs features"):
        gate()
