"""Batch norm over the rows of all processes of a job. Paddle's own has no kernel for CPUs (3.3.1)."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from dselect_k_model import processes

BATCH_NORMS = (nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D)


class SyncBatchNorm(nn.Layer):
    """A layer that takes the place of one of ``BATCH_NORMS``, with its parameters and running statistics.

    In training mean and variance are those of the batch of the whole job, so the result and its gradient are a single
    process's. Each costs one reduction of 2 C + 1 numbers for C channels. In evaluation nothing is reduced.

    Args:
        layer: the batch norm, whose channels come second: [B, C, ...].
    """

    runs_without_rows = True  # see ``net.mix_needed_experts``

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias, self._mean, self._variance = layer.weight, layer.bias, layer._mean, layer._variance
        # in float32, as Paddle's own kernel has them
        self.momentum, self.epsilon = (float(np.float32(x)) for x in (layer._momentum, layer._epsilon))

    def forward(self, x):
        """float [B, C, ...] -> the same shape."""
        if not self.training:
            return F.batch_norm(x, self._mean, self._variance, self.weight, self.bias, epsilon=self.epsilon)
        shift = self._mean.detach()  # sums of squares around it lose no digits to a large mean
        x = _affine(x, paddle.ones_like(shift), -shift)
        mean, variance, count = self._of_job(x)
        self._move(mean.detach() + shift, variance.detach(), paddle.clip(count, 0.0, 1.0))
        scale = 1.0 / paddle.sqrt(variance + self.epsilon)
        scale = scale if self.weight is None else scale * self.weight
        offset = -mean * scale
        return _affine(x, scale, offset if self.bias is None else offset + self.bias)

    def _of_job(self, x):
        """(mean [C], variance [C], numbers a channel [1]) over all processes."""
        channels, size = x.shape[1], math.prod(x.shape[2:])
        if -1 in x.shape[2:]:  # in a program, behind a selection of rows
            size = paddle.prod(paddle.shape(x)[2:])
        rows = paddle.cast(paddle.shape(x)[:1], x.dtype)
        x = paddle.reshape(x, [0, channels, size])
        ones = paddle.ones([size, 1], x.dtype)
        # products with ones: on a CPU a tenth of the time of sums over these axes
        sums = [paddle.sum(each @ ones, axis=[0, 2]) for each in (x, x * x)]
        sums = paddle.concat([*sums, rows * paddle.cast(paddle.shape(ones)[0], x.dtype)])
        sums = processes.total_with_gradient(sums, paddle.clip(rows, min=1.0))
        count = sums[-1:].detach()
        numbers = paddle.clip(count, min=1.0)  # an expert that nobody needs has none
        mean = sums[:channels] / numbers
        return mean, paddle.clip(sums[channels:-1] / numbers - mean * mean, min=0.0), count

    def _move(self, mean, variance, exists):
        """Move the running statistics; they stand still if there is no number at all."""
        factor = exists * (1.0 - self.momentum)
        for running, new in ((self._mean, mean), (self._variance, variance)):
            paddle.assign(running + (new - running) * factor, output=running)


def _affine(x, scale, offset):
    """x times ``scale`` [C] plus ``offset`` [C], by the kernel of batch norm: Paddle's broadcasting is slow on CPUs."""
    zero, one = paddle.zeros_like(scale).detach(), paddle.ones_like(scale).detach()
    return F.batch_norm(x, zero, one, scale, offset, training=False, epsilon=0.0)


def convert(network, but=()):
    """Put a SyncBatchNorm in the place of each batch norm in ``network`` that is in none of the layers ``but``.

    Returns:
        How many there were.
    """
    found, spared = 0, {id(layer) for each in but for layer in each.sublayers(include_self=True)}
    for parent in network.sublayers(include_self=True):
        if id(parent) in spared:
            continue
        for name, layer in list(parent.named_children()):
            if type(layer) in BATCH_NORMS:
                parent.add_sublayer(name, SyncBatchNorm(layer))
                found += 1
    return found
