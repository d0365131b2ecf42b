"""Independent forms of what net.py does: plain NumPy loops in float64, and the dense mixture."""

import math

import numpy as np
import paddle


def smooth_step(t, gamma):
    """The cubic as the paper prints it, case by case."""
    if t <= -gamma / 2:
        return 0.0
    if t >= gamma / 2:
        return 1.0
    return -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5


def smooth_step_slope(t, gamma):
    if abs(t) >= gamma / 2:
        return 0.0
    return -6 * t**2 / gamma**3 + 3 / (2 * gamma)


def selectors(z, expert_num, gamma):
    """r [k, n] of selector logits z [k, m], digit by digit, the most significant first."""
    k, m = z.shape
    r = np.ones([k, expert_num])
    for s in range(k):
        for i in range(expert_num):
            for j, digit in enumerate(format(i, f"0{m}b") if m else ""):
                step = smooth_step(z[s, j], gamma)
                r[s, i] *= step if digit == "1" else 1 - step
    return r


def gate(z, w, expert_num, gamma):
    """q [n]."""
    p = np.exp(w - w.max())
    return (p / p.sum()) @ selectors(z, expert_num, gamma)


def entropy(r):
    return sum(-sum(x * math.log(x + 1e-6) for x in row) for row in r)


def reachability(r):
    return sum(1 / sum(row) for row in r)


def entmax(z, alpha):
    """alpha-entmax of one row z [n], 2: sparsemax. By bisection of the threshold at which the weights sum to 1.

    It lies between max((alpha - 1) z) - 1, where one weight alone is 1, and max((alpha - 1) z), where all are 0.
    """
    scaled, power = (alpha - 1) * np.asarray(z, float), 1 / (alpha - 1)
    scaled = scaled - scaled.max()
    low, high = -1.0, 0.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between
        low, high = (middle, high) if (np.maximum(scaled - middle, 0) ** power).sum() >= 1 else (low, middle)
    return np.maximum(scaled - low, 0) ** power


def central_difference(function, x, step=1e-6):
    """Jacobian of ``function`` at ``x``: [*output shape, *x shape]."""
    x = np.array(x, float)
    columns = []
    for i in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        columns.append((np.asarray(function(up)) - np.asarray(function(down))) / (2 * step))
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


def mix_all_experts(experts, x, weights, *_):
    """The dense mixture, in place of ``net.mix_needed_experts``."""
    outputs = paddle.stack([expert(x) for expert in experts], axis=1)  # [B, n, H]
    return [paddle.squeeze(paddle.reshape(w, [-1, 1, len(experts)]) @ outputs, axis=1) for w in weights]


def brute_force_auc(scores, labels):
    """The share of pairs (positive, negative) in the right order, ties half; both arrays [N], labels 0 or 1."""
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))
