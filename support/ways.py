"""The three ways to run the package, behind one interface: eager, to_static, static.

Parameters are compared by their names, which are the same in all three. A fourth way, dense, is the oracle of the
others: an eager run that computes every expert on every example.
"""

import contextlib
import functools
import os
import types
from unittest import mock

import numpy as np
import paddle
from paddle.base.data_feeder import convert_dtype

import net
from dygraph_model import DygraphModel
from engine.graphs import executor
from static_model import StaticModel
from support import oracles
from support.rounding import assert_near
from support.seeds import seeded

WAYS = ("eager", "to_static", "static")
LEGACY_3 = os.environ.get("FLAGS_enable_pir_api") == "0" and not paddle.__version__.startswith("2.")


def config(**keys):
    """A flat config; ``optimizer__x`` stands for ``optimizer.x``, ``runner__x`` for ``runner.x``."""
    flat = {}
    for key, value in keys.items():
        section = "" if key.startswith("runner__") else "hyper_parameters."
        flat[section + key.replace("__", ".")] = value
    return flat


def make_batches(rng, number, size=8, task_num=2, side=36):
    """Batches [image, label, ...] of noise, in Paddle's default dtype, as the networks of ``start`` are."""
    return [
        [rng.rand(size, 1, side, side).astype(paddle.get_default_dtype())]
        + [rng.randint(0, 10, [size]) for _ in range(task_num)]
        for _ in range(number)
    ]


def start(way, flat, seed=1):
    """A fresh network, with its optimizer, in one of ``WAYS``, or dense."""
    return StaticRun(flat, seed) if way == "static" else EagerRun(flat, seed, way)


def assert_steps_agree(ours, theirs, batches, tolerance):
    """Train two runs on the same batches, and compare their losses; gives the numbers of experts that ours used."""
    numbers = []
    for batch in batches:
        (loss, used), (their_loss, _) = ours.step(batch), theirs.step(batch)
        assert_near(loss, their_loss, tolerance, "loss")
        numbers.append(used)
    return numbers


class EagerRun:
    """The dynamic graph; ``way`` is eager, to_static (compiled by ``paddle.jit.to_static``), or dense."""

    def __init__(self, flat, seed=1, way="eager"):
        # the dense network is made of Paddle's layers alone
        self.flat, self.way = {**flat, "hyper_parameters.kernels": False} if way == "dense" else flat, way
        with paddle.utils.unique_name.guard():
            paddle.seed(seeded(seed))
            self.wrapper = DygraphModel()
            self.net = self.wrapper.create_model(self.flat)
            self.optimizer = self.wrapper.create_optimizer(self.net, self.flat)
        self.names = {key: tensor.name for key, tensor in self.net.state_dict().items()}
        if way == "to_static":
            self.net.forward = paddle.jit.to_static(self.net.forward, full_graph=True)
        if way == "dense":
            patch = mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts)
            self.net.forward = patch(self.net.forward)

    def step(self, batch):
        """One training step: (loss, number of experts used)."""
        self.net.train()
        self.optimizer.clear_grad()
        metrics, _ = self.wrapper.create_metrics()
        loss, _, printed = self.wrapper.train_forward(self.net, metrics, self._tensors(batch), self.flat)
        loss.backward()
        with paddle.utils.unique_name.guard():  # the optimizer names its state now, as in a fresh process
            self.optimizer.step()
        return float(loss), int(printed["experts_used"])

    def evaluate(self, batch):
        """(accuracies, loss, outputs of each task) in evaluation mode."""
        self.net.eval()
        metrics, names = self.wrapper.create_metrics()
        metrics, printed = self.wrapper.infer_forward(self.net, metrics, self._tensors(batch), self.flat)
        accuracies = [m.accumulate() for m, name in zip(metrics, names) if name.startswith("Accuracy")]
        return accuracies, float(printed["loss"]), self.outputs(batch)

    @paddle.no_grad()
    def outputs(self, batch):
        """Outputs of each task, in evaluation mode."""
        self.net.eval()
        inputs, _ = self.wrapper.hyper.split(self._tensors(batch))
        return [z.numpy() for z in self.net(inputs)]

    def state(self):
        return {tensor.name: tensor.numpy().copy() for tensor in self.net.state_dict().values()}

    def set(self, values):
        for tensor in self.net.state_dict().values():
            if tensor.name in values:
                tensor.set_value(np.asarray(values[tensor.name], tensor.numpy().dtype))

    def reopened(self, folder):
        """A fresh run that goes on from this one's saved files."""
        paddle.save(self.net.state_dict(), f"{folder}/rec.pdparams")
        paddle.save(self.optimizer.state_dict(), f"{folder}/rec.pdopt")
        other = EagerRun(self.flat, 99, self.way)
        other.net.set_state_dict(paddle.load(f"{folder}/rec.pdparams"))
        other.optimizer.set_state_dict(paddle.load(f"{folder}/rec.pdopt"))
        return other

    @staticmethod
    def _tensors(batch):
        return [paddle.to_tensor(item) for item in batch]


class StaticRun:
    """The static graph: a training and an inference program over one scope. The latter is built when first needed."""

    def __init__(self, flat, seed=1):
        self.flat = flat
        self.scope = paddle.static.Scope()
        with self.on():
            self.program, startup = paddle.static.Program(), paddle.static.Program()
            with paddle.utils.unique_name.guard(), paddle.static.program_guard(self.program, startup):
                self.wrapper = StaticModel(flat)
                self.feeds = self.wrapper.create_feeds()
                self.fetches = self.wrapper.net(self.feeds)
                self.wrapper.create_optimizer()
            self.names = {key: tensor.name for key, tensor in self.wrapper.network.state_dict().items()}
            self.executor = paddle.static.Executor(paddle.CPUPlace())
            paddle.seed(seeded(seed))
            executor.run_start_up(startup, paddle.CPUPlace())

    @contextlib.contextmanager
    def on(self):
        """Static mode, and this run's scope."""
        paddle.enable_static()
        try:
            with paddle.static.scope_guard(self.scope):
                yield
        finally:
            paddle.disable_static()

    @functools.cached_property
    def inference(self):
        """The program for inference, which may be replaced by another form of it, its feeds, fetches and logits."""
        program = paddle.static.Program()
        with self.on(), paddle.utils.unique_name.guard(), paddle.static.program_guard(program, paddle.static.Program()):
            wrapper = StaticModel(self.flat)
            feeds = wrapper.create_feeds(is_infer=True)
            built = wrapper.build(feeds, is_infer=True)
        logits = [built.observed[name] for name in wrapper.observed_outputs()]
        return types.SimpleNamespace(program=program, feeds=feeds, fetches=built.fetches, logits=logits)

    def _run(self, program, batch, fetches):
        dtypes = (convert_dtype(variable.dtype) for variable in self.feeds)
        feed = {v.name: np.asarray(item, dtype) for v, item, dtype in zip(self.feeds, batch, dtypes)}
        with self.on():
            return [np.asarray(x) for x in self.executor.run(program, feed=feed, fetch_list=fetches)]

    def step(self, batch):
        loss, used = self._run(self.program, batch, [self.fetches["loss"], self.fetches["experts_used"]])
        return float(loss), int(used)

    def evaluate(self, batch):
        values = self._run(self.inference.program, batch, list(self.inference.fetches.values()))
        printed = dict(zip(self.inference.fetches, values))
        accuracies = [float(v) for name, v in printed.items() if name.startswith("Accuracy")]
        return accuracies, float(printed["loss"]), self.outputs(batch)

    def outputs(self, batch):
        return self._run(self.inference.program, batch, self.inference.logits)

    def state(self):
        return {name: self._array(name).copy() for name in self.names.values()}

    def _array(self, name):
        return np.asarray(self.scope.find_var(name).get_tensor())

    def set(self, values):
        for name, value in values.items():
            self.scope.find_var(name).get_tensor().set(np.asarray(value, self._array(name).dtype), paddle.CPUPlace())

    def reopened(self, folder):
        with self.on():
            state = self.program.state_dict("all", self.scope)
            np.savez(f"{folder}/state.npz", **{name: np.asarray(value) for name, value in state.items()})
        other = StaticRun(self.flat, seed=99)
        other.set(np.load(f"{folder}/state.npz"))
        return other


def gate_values(run, selector_logits, mixing_logits=None, selector_weight=0.0):
    """Values to ``set`` so that every task's DSelect-k gate has these logits: [k, m], [k].

    A per-example gate's are then the same for all examples, but for ``selector_weight``: a number or [features, k m].
    """
    values, state = {}, run.state()
    for key, name in run.names.items():
        if key.endswith("selector_logits"):
            values[name] = np.reshape(selector_logits, -1)
        if key.endswith("selector_weight"):
            values[name] = np.broadcast_to(selector_weight, state[name].shape)
        if key.endswith("mixing_logits") and mixing_logits is not None:
            values[name] = np.asarray(mixing_logits)
    return values


def code_logits(codes, digits, distance):
    """Selector logits [k, m] that point at experts ``codes``, each digit ``distance`` away from 0."""
    return [[distance if code >> (digits - 1 - j) & 1 else -distance for j in range(digits)] for code in codes]


def trained(run):
    """Parameters by name: without running statistics, which do not change while an expert is skipped."""
    state = run.state()
    others = ("_mean", "_variance", "dropout_state")  # the last: a recurrent layer's, in programs
    return {name: state[name] for key, name in run.names.items() if not key.endswith(others)}


def is_running_statistic(key):
    return key.endswith(("_mean", "_variance"))
