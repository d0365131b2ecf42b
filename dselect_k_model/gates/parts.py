"""What several gates are made of. All of it builds in legacy programs too: see the workarounds in net.py."""

import paddle
from paddle import Tensor


def total(x: Tensor) -> Tensor:
    """The sum over the last axis, which is kept as one of size 1."""
    return paddle.mean(x, axis=-1, keepdim=True) * float(x.shape[-1])


def positive_part(x: Tensor) -> Tensor:
    """max(x, 0), where NaN stays NaN; its slope is exactly 0 wherever it is 0.

    Paddle's relu makes 0 of NaN, and the slope of its clip at the bound is 0 (2.6.2) or 1 (3.3.1).
    """
    return paddle.clip(x, min=0.0) * paddle.cast(x > 0, x.dtype)


def above_threshold(logits: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Which logits z_i have a weight max(z_i - tau, 0)^power > 0, tau being the number for which the weights sum to 1.

    Their sum falls as tau rises. So tau lies below z_i just if the sum is below 1 at tau = z_i, that is if
    sum_j max(z_j - z_i, 0)^power < 1. This needs no sorting and treats equal logits alike, but n^2 numbers an example.

    Args:
        logits: z, float32 or float64 [B, n].
        power: from 1.
    Returns:
        (z less its greatest, mask), [B, n] each. The mask, without gradient, is 1 for the logits that have a weight
        and 0 for the others, of which the first holds -2 if they are smaller.
    """
    greatest = paddle.max(logits, axis=-1, keepdim=True)
    greatest.stop_gradient = True  # the weights do not depend on it
    # No weight is above 1, so tau >= -1. What is far below cannot overflow then, and infinity times 0 be NaN
    below = paddle.clip(logits - greatest, min=-2.0)
    differences = paddle.unsqueeze(below, 1) - paddle.unsqueeze(below, 2)  # [B, i, j]: z_j - z_i
    sums = paddle.squeeze(total(positive_part(differences) ** power), axis=-1)
    return below, paddle.cast(sums < 1.0, below.dtype)
