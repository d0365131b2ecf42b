"""Experts and embeddings that the processes of a job share out: each holds some, and the rows of a batch travel.

The collectives for CPUs (gloo) have no all-to-all and no reduce-scatter. So all processes get every row (all-gather),
each computes what its experts, or its part of the table, add to the result, and each gets its rows of the sum
(all-reduce). The rows come in the order of the processes, which is that of one process's batch.

What a process alone holds needs no average of gradients: its gradient is that of the job's loss (see ``processes``).
"""

import contextlib
import logging
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

import net
from dselect_k_model import processes

LOG = logging.getLogger("dselect_k")


def share_of(number):
    """(begin, end): which of ``number`` things this process holds."""
    rank, processes_num = processes.rank(), processes.number()
    return rank * number // processes_num, (rank + 1) * number // processes_num


class Shards(NamedTuple):
    """Which parameters and statistics the processes do not all hold, by structured name, for the tools.

    Args:
        alone: held by this process alone: structured name -> name of the parameter.
        elsewhere: held by another process alone, likewise.
        rows: of which each holds some rows: structured name -> (name of the parameter, begin, end, rows in all).
    """

    alone: dict
    elsewhere: dict
    rows: dict

    @classmethod
    def of(cls, network):
        """Those of a net.MultiTaskNetwork; None if every process holds all of it."""
        found = cls({}, {}, {})
        if isinstance(network.mix_experts, ShardedMixture):
            for i, expert in enumerate(network.experts):
                is_here = not isinstance(expert, Elsewhere)
                names = {name: tensor.name for name, tensor in expert.state_dict().items()} if is_here else expert.names
                held = found.alone if is_here else found.elsewhere
                held.update({f"experts.{i}.{structured}": name for structured, name in names.items()})
        table = getattr(network.inputs, "embedding", None)
        if isinstance(table, ShardedEmbedding):
            found.rows["inputs.embedding.weight"] = (table.weight.name, table.begin, table.end, table.row_num)
        return found if any(found) else None

    def is_shared_out(self, name):
        """Whether other processes do not have all of a parameter, by its name."""
        return name in self.alone.values() or any(name == of_table for of_table, *_ in self.rows.values())


class _Rows:
    """The rows of a step's batch, on all processes.

    Args:
        x: this process's rows, [b, ...]; B in all, m at most on one process, N processes.
    """

    def __init__(self, x):
        self.own = paddle.cast(paddle.shape(x)[:1], "int64")
        one_hot = paddle.assign((np.arange(processes.number()) == processes.rank()).astype("int64"))
        self.numbers = processes.total(one_hot * self.own)  # [N]
        self.greatest = paddle.max(self.numbers)
        place = paddle.unsqueeze(paddle.arange(0, self.greatest, dtype="int64"), 0)  # [1, m]
        self.places = paddle.reshape(place, [-1])
        is_row = paddle.reshape(place < paddle.unsqueeze(self.numbers, 1), [-1])  # [N m]
        self.present = paddle.reshape(paddle.nonzero(is_row), [-1])  # [B]
        self.share = paddle.cast(self.own, "float64") / paddle.cast(paddle.sum(self.numbers), "float64")  # b / B

    def to_all(self, x):
        """[b, C] of each process -> [B, C]."""
        if not x.stop_gradient:
            x = processes.with_gradient_times(x, paddle.cast(1.0 / self.share, x.dtype))
        padded = paddle.gather(x, paddle.minimum(self.places, self.own - 1))  # [m, C]
        return paddle.gather(processes.rows_of_all(padded), self.present)

    def own_of_total(self, y, reached):
        """[B, C], of which each process has a part -> this process's rows of the sum, [b, C].

        Args:
            y: the part.
            reached: see ``processes.own_rows_of_total``.
        """
        spread = paddle.zeros([self.greatest * processes.number(), y.shape[1]], y.dtype)
        spread = paddle.scatter(spread, self.present, y)
        own = processes.own_rows_of_total(spread, reached)[: self.own]
        return processes.with_gradient_times(own, paddle.cast(self.share, y.dtype))


# -------------------------------------------------------------------------------------- experts


class Elsewhere(nn.Layer):
    """Stands for an expert that another process holds.

    Its initial values are drawn all the same, so that every other parameter gets those it would have in one process.

    Args:
        make: function () -> the expert.
    """

    def __init__(self, make):
        super().__init__()
        apart = contextlib.nullcontext()
        if not paddle.in_dynamic_mode():
            program = paddle.static.Program()
            apart = paddle.static.program_guard(program, paddle.static.default_startup_program())
        with apart:
            self.names = {structured: tensor.name for structured, tensor in make().state_dict().items()}

    def forward(self, x):
        raise RuntimeError("this expert is on another process")


class ShardedMixture:
    """``net.mix_needed_experts`` over experts of which this process holds those of ``share_of``."""

    def __call__(self, experts, x, weights, expert_size, by_row=False, branch=False, agree=None):
        begin, end = share_of(len(experts))
        widths = [w.shape[1] for w in weights]
        rows, inputs = _Rows(x), paddle.flatten(x, start_axis=1)
        if x.stop_gradient:  # no gradient for it travels back
            weights = rows.to_all(paddle.concat(weights, axis=1))
            inputs, reached = rows.to_all(inputs), weights
        else:
            reached = rows.to_all(paddle.concat([inputs, *weights], axis=1))
            inputs, weights = paddle.split(reached, [inputs.shape[1], sum(widths)], axis=1)
        weights = [w[:, begin:end] for w in paddle.split(weights, widths, axis=1)]
        inputs = paddle.reshape(inputs, [-1, *x.shape[1:]])
        # each expert has the rows of the whole job here, so there is nothing to ``agree`` on
        parts = net.mix_needed_experts(list(experts)[begin:end], inputs, weights, expert_size, by_row, branch)
        mixtures = rows.own_of_total(paddle.concat(parts, axis=1), reached)
        return paddle.split(mixtures, len(parts), axis=1)


# ----------------------------------------------------------------------------------- embeddings


class _RowsOf(nn.initializer.Initializer):
    """The rows [begin, end) of what another initializer gives for ``row_num`` rows."""

    def __init__(self, initializer, row_num, begin, end):
        super().__init__()
        self.initializer, self.row_num, self.begin, self.end = initializer, row_num, begin, end

    def forward(self, var, block=None):
        shape = [self.row_num, *var.shape[1:]]
        if paddle.in_dynamic_mode():
            whole = paddle.empty(shape, var.dtype)
            self.initializer(whole)
            var.set_value(whole[self.begin : self.end])
            return None
        whole = self.initializer(type(var)(shape, var.dtype), block)  # the type in which Paddle describes a parameter
        return whole[self.begin : self.end]


class ShardedEmbedding(nn.Layer):
    """``net.Embedding`` of which this process holds the rows of ``share_of``.

    Args:
        row_num: rows of the whole table.
        size: width.
        weight_attr: paddle.ParamAttr with an initializer.
        counts_steps: whether the optimizer must hear of a step without any of these rows, to count it.
    """

    def __init__(self, row_num, size, weight_attr, counts_steps=False):
        super().__init__("embedding")  # named as the whole one would be
        self.row_num, self.counts_steps = row_num, counts_steps
        if row_num < processes.number():
            raise ValueError(
                f"hyper_parameters.input.shard_embedding is true, but there are {row_num} ids for {processes.number()} "
                "processes. Set it to false."
            )
        self.begin, self.end = share_of(row_num)
        LOG.info("this process holds the embeddings %d to %d of %d", self.begin, self.end - 1, row_num)
        initializer = _RowsOf(weight_attr.initializer, row_num, self.begin, self.end)
        self.weight = self.create_parameter(
            [self.end - self.begin, size], attr=paddle.ParamAttr(initializer=initializer)
        )

    def forward(self, ids, sparse=False):
        """See ``net.Embedding``."""
        field_num, size = ids.shape[1], self.weight.shape[1]
        rows = _Rows(ids)
        places = paddle.reshape(rows.to_all(ids), [-1]) - self.begin  # [B F]
        is_here = paddle.logical_and(places >= 0, places < self.end - self.begin)
        here = paddle.reshape(paddle.nonzero(is_here), [-1])
        vectors = paddle.zeros([paddle.shape(places)[0], size], self.weight.dtype)
        # in the dynamic graph Paddle 2.6.2, and the step of SGD in 3.3.1, crash on a gradient of no row
        if not paddle.in_dynamic_mode() or here.shape[0] or (sparse and self.counts_steps):
            found = F.embedding(paddle.gather(places, here), self.weight, sparse=sparse)
            vectors = paddle.scatter(vectors, here, found)
        reached = paddle.zeros([1], self.weight.dtype)
        reached.stop_gradient = False
        own = rows.own_of_total(paddle.reshape(vectors, [-1, field_num * size]), reached)
        return paddle.reshape(own, [-1, field_num, size])


class LazyAdam(paddle.optimizer.Adam):
    """Paddle's, which counts a step without a row of an embedding too, as it does where the batch has ids of the table.

    Paddle passes over a gradient without rows (3.3.1), so the correction of the moments' bias would fall behind.
    """

    def step(self):
        super().step()
        for parameter in self._parameter_list:
            gradient = parameter.grad
            if gradient is not None and gradient.is_selected_rows() and not gradient.get_selected_rows().rows():
                self._count_step(parameter)

    def _count_step(self, parameter):
        for name, beta in ((self._beta1_pow_acc_str, self._beta1), (self._beta2_pow_acc_str, self._beta2)):
            power = self._accumulators[name][parameter.name]
            power.set_value(power * beta)


# ------------------------------------------------------------------------------------- clipping


class ClipGradByGlobalNorm(nn.ClipGradByGlobalNorm):
    """Paddle's, where the norm is that of all processes' parameters.

    Args:
        clip_norm: the greatest norm.
        shards: Shards.
    """

    def __init__(self, clip_norm, shards):
        super().__init__(clip_norm)
        self.shards = shards

    def __call__(self, params_grads):
        pairs = [(p, g) for p, g in params_grads if g is not None]
        of_one = [g for p, g in pairs if self.shards.is_shared_out(p.name)]
        of_all = [g for p, g in pairs if not self.shards.is_shared_out(p.name)]
        # all processes add up the same numbers in the same order
        squares = processes.total(_sum_of_squares(of_one)) + _sum_of_squares(of_all)
        factor = self.clip_norm / paddle.clip(paddle.sqrt(squares), min=self.clip_norm)
        return [(p, None if g is None else g * paddle.cast(factor, g.dtype)) for p, g in params_grads]


def _sum_of_squares(gradients):
    return paddle.add_n([paddle.zeros([1]), *(paddle.reshape(paddle.sum(g * g), [1]) for g in gradients)])
