"""Reductions over the processes of a job, within a training step, in both graphs. In a single process they do nothing.

Each process computes its own rows of a batch. The gradient of the job's loss is the mean of the processes' gradients,
each weighted by its rows, which is what the tools compute. So a loss here must be a mean over this process's rows, and
what is not, such as a mean over labels of which some are missing, is divided by the job's numbers.

All processes must call these functions equally often and in the same order: in training, and in evaluation where they
share out the network (see ``sharding``).
"""

import contextlib
import os

import paddle
from paddle import distributed

RING = 0  # the group of all processes


def number():
    """How many processes there are: 1, until ``paddle.distributed.init_parallel_env`` has set up more."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank():
    """Which of them this is, from 0."""
    return distributed.get_rank() if number() > 1 else 0


def on_this_machine():
    """How many processes of the job run on this machine, as the launcher tells."""
    if os.environ.get("PADDLE_LOCAL_SIZE", "").isdigit():
        return max(int(os.environ["PADDLE_LOCAL_SIZE"]), 1)
    host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").partition(":")[0]
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return max(sum(endpoint.partition(":")[0] == host for endpoint in endpoints), 1)


def cores():
    """How many cores this process has to itself."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(available // on_this_machine(), 1)


def gathered(value):
    """``value`` of each process, by rank. Outside of steps, in either graph."""
    if number() == 1:
        return [value]
    found: list = []
    with contextlib.nullcontext() if paddle.in_dynamic_mode() else paddle.base.dygraph.guard():
        distributed.all_gather_object(found, value)
    return found


def total(x):
    """The sum of ``x`` over the processes, without gradient."""
    return _reduced(x, distributed.ReduceOp.SUM)


def greatest(x):
    """The elementwise maximum of ``x`` over the processes, without gradient."""
    return _reduced(x, distributed.ReduceOp.MAX)


def _reduced(x, operation):
    if number() == 1:
        return x
    if paddle.in_dynamic_mode():
        x = x.detach().clone()
        distributed.all_reduce(x, op=operation)
        return x
    x = paddle.assign(x)
    x.stop_gradient = True
    x = paddle._C_ops.all_reduce(x, RING, operation)
    x.stop_gradient = True
    return x


def mean(x, rows):
    """The mean over the job's rows, without gradient.

    Args:
        x: float tensor, any shape, a mean over this process's rows.
        rows: number of rows of this process, a tensor with one element.
    """
    if number() == 1:
        return x
    rows = paddle.reshape(paddle.cast(rows, x.dtype), [1])
    sums = total(paddle.concat([paddle.reshape(x, [-1]) * rows, rows]))
    return paddle.reshape(sums[:-1] / sums[-1:], x.shape)


def mean_of_rows(x):
    """The mean over the job's rows of ``x`` [B, ...], with a gradient for this process's rows.

    That gradient is as if the job's mean were this process's: see the module's text.
    """
    own = paddle.mean(x, axis=0)
    if number() == 1:
        return own
    rest = mean(own, paddle.shape(x)[0]) - own
    rest.stop_gradient = True
    return own + rest


def total_with_gradient(x, rows):
    """The sum of ``x`` [C] over the processes, with the gradient of the job's loss: see the module's text.

    Args:
        x: float tensor.
        rows: number of rows of this process, a tensor with one element.
    """
    if number() == 1:
        return x
    rows = paddle.reshape(paddle.cast(rows, x.dtype), [1])
    # backward, the processes' gradients are weighted by their rows, and each gets the sum in its own measure
    return with_gradient_times(_total(with_gradient_times(x, 1.0 / rows)), rows)


def with_gradient_times(x, factor):
    """``x`` exactly, its gradient multiplied by ``factor``."""
    value = x * 1.0
    value.stop_gradient = True
    return value + (x - value) * factor


def _total(x):
    """The sum over the processes; its gradient is the sum of their gradients."""
    if paddle.in_dynamic_mode():
        return _Total.apply(x)
    return paddle.static.nn.static_pylayer(_reduce_in_program, [x], _reduce_in_program)


def _reduce_in_program(x):
    return paddle._C_ops.all_reduce(x, RING, distributed.ReduceOp.SUM)


class _Total(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        return total(x)

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient)


# ------------------------------------------------------------------------------ rows that travel


def rows_of_all(x):
    """The rows of all processes, by rank: [m, C] of each -> [N m, C] for N processes.

    Its gradient for a process's rows is the sum of all processes' gradients for them.
    """
    if x.stop_gradient:
        return _gathered_rows(x)
    if paddle.in_dynamic_mode():
        return _RowsOfAll.apply(x)
    return paddle.static.nn.static_pylayer(_gathered_rows, [x], _own_rows_of_total)


def own_rows_of_total(x, reached):
    """The sum of [N m, C] over the processes, of which each gets its rows, by rank: [m, C].

    Its gradient for [N m, C] is the rows of all processes' gradients.

    Args:
        x: float tensor.
        reached: a tensor with a gradient. Its gradient is asked for on every process, with zeros from here, even if
            ``x`` has none on one of them: so all take the same part in the reductions of a backward pass.
    """
    if paddle.in_dynamic_mode():
        return _OwnRowsOfTotal.apply(x, reached)
    return paddle.static.nn.static_pylayer(_own_rows_of_total, [x], _gathered_rows)


def _gathered_rows(x):
    if not paddle.in_dynamic_mode():
        return paddle._C_ops.all_gather(x, RING, number())
    parts: list = []
    distributed.all_gather(parts, x.detach())
    return paddle.concat(parts)


def _own_rows_of_total(x):
    summed = total(x) if paddle.in_dynamic_mode() else _reduce_in_program(x)
    return paddle.reshape(summed, [number(), -1, x.shape[1]])[rank()]


class _RowsOfAll(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x):
        return _gathered_rows(x)

    @staticmethod
    def backward(ctx, gradient):
        return _own_rows_of_total(gradient)


class _OwnRowsOfTotal(paddle.autograd.PyLayer):
    @staticmethod
    def forward(ctx, x, reached):
        ctx.shape, ctx.has_gradient = reached.shape, not x.stop_gradient
        return _own_rows_of_total(x)

    @staticmethod
    def backward(ctx, gradient):
        rows = _gathered_rows(gradient)
        return rows if ctx.has_gradient else None, paddle.zeros(ctx.shape, gradient.dtype)
