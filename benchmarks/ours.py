"""The package itself as a variant: eager, to_static or static, as it is or with all experts computed."""

import contextlib
import os
from unittest import mock

import case as cases
import numpy as np
import oracles
import paddle
from ways import code_logits, config, gate_values, make_batches, start

import net
from engine.config import load_config
from engine.graphs import executor
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph
from engine.keys import read_settings
from engine.package import Package

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SETTLED_DISTANCE = 0.8  # of a digit's logit from 0: outside the band of width 1
IMAGE_SIZE = 36  # pixels a side
ROWS_DISTANCE = 1e4  # a per-example gate's typical logit: none of a batch is likely to lie in the band
AGED_MOMENTS = {"_moment1_": 1e-30, "_moment2_": 2e-38}  # see age_dead_experts
LEAST_NORMAL = np.finfo(np.float32).tiny


class Ours:
    """The package with a case's weights, trained by the tools' own graphs: a step is a step of a tool.

    Args:
        path: of the case.
        way: one of ``ways.WAYS``.
        dense: compute all experts, whatever their weights.
        unchanging: spare the executor printing its program at every run, as the tools do.
    """

    def __init__(self, path, way, dense=False, unchanging=True):
        self.case, self.dense = cases.Case(path), dense
        executor.keep_tensors(paddle.CPUPlace())
        flat = config(**self.case.hyper)
        with self._mixture():
            self.run = start("static" if way == "static" else "eager", flat)
            self.graph = _tools_graph(self.run, way, flat, unchanging)
        self.run.set({self.run.names[key]: value for key, value in self.case.weights.items()})
        self.trains = False

    def _mixture(self):
        if not self.dense:
            return contextlib.nullcontext()
        return mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts)

    def predict(self):
        self.trains = False
        with self._mixture():
            return self.run.predict(self.case.batch)

    def step(self):
        """One training step: (loss before it, experts in use)."""
        with self._mixture(), _on(self.run):
            if not self.trains:
                self.graph.begin_epoch()
                self.trains = True
            step, _ = self.graph.train_step(self.case.batch)
        used = np.asarray(step.tensors["experts_used"])
        # a per-example gate's is the mean over the examples, not the number of all that run
        return float(step.tensors["loss"]), int(used) if used.dtype.kind == "i" else None

    def age_dead_experts(self):
        """Set the moments of skipped experts as if these had been skipped for long.

        A step leaves nine tenths of the first and 0.999 of the second: from its usual size, that one needs
        some 70,000 steps to the denormal numbers. Started close to them, both reach them within 600.
        """
        self._set_optimizer_state(
            {
                name: np.full_like(value, size)
                for name, value in self._dead_moments().items()
                for kind, size in AGED_MOMENTS.items()
                if kind in name
            }
        )

    def denormal_share(self):
        """The share of the skipped experts' moments that are denormal numbers."""
        values = np.concatenate([np.ravel(value) for value in self._dead_moments().values()])
        return float(((values != 0) & (np.abs(values) < LEAST_NORMAL)).mean())

    def _dead_moments(self):
        dead = [f"experts.{i}." for i in range(self.run.wrapper.hyper.expert_num) if i not in self.case.active]
        parameters = tuple(name for key, name in self.run.names.items() if key.startswith(tuple(dead)))
        return {
            name: value
            for name, value in self._optimizer_state().items()
            if name.startswith(parameters) and any(kind in name for kind in AGED_MOMENTS)
        }

    def _optimizer_state(self):
        if hasattr(self.run, "optimizer"):
            state = self.run.optimizer.state_dict().items()
            return {name: value.numpy() for name, value in state if isinstance(value, paddle.Tensor)}
        return {name: np.asarray(value) for name, value in self.graph.program.state_dict("opt", self.run.scope).items()}

    def _set_optimizer_state(self, values):
        if not hasattr(self.run, "optimizer"):
            return self.run.set(values)
        state = self.run.optimizer.state_dict()  # of the optimizer's own tensors
        for name, value in values.items():
            state[name].set_value(value)


def _tools_graph(run, way, flat, unchanging):
    """The graph of ``tools/`` for training, and ``run`` made one with it: its weights are the graph's."""
    own = load_config(os.path.join(ROOT, "config.yaml"), [])
    keys = {key: value for key, value in own.items() if not key.startswith("hyper_parameters.")}
    settings = read_settings(keys, "train")
    settings.to_static, settings.tune_process = way == "to_static", unchanging
    kind = StaticGraph if way == "static" else DynamicGraph
    with _on(run), paddle.utils.unique_name.guard():  # the same names as the run's
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            graph = kind(Package(ROOT), {**keys, **flat}, settings, "train", paddle.CPUPlace())
    if way != "static":
        run.net, run.optimizer, run.wrapper = graph.net, graph.optimizer, graph.model
    elif unchanging:
        run.infer_program = executor.unchanging(run.infer_program)
    return graph


def _on(run):
    return run.on() if hasattr(run, "on") else contextlib.nullcontext()


def write_reference(spec, path):
    """Write a case: weights, a batch of noise of the real size, and what the dense mixture answers.

    The work does not depend on the images, but a per-example gate's choice does.

    Args:
        spec: {"hyper": as ``ways.config`` takes them, "batch": examples,
            "settled": None, or for each task the experts that its static gate has settled on, or
            "rows": a per-example gate that has settled on other experts for each example}.
        path: to write.
    """
    rng = np.random.RandomState(0)
    batch = make_batches(rng, 1, size=spec["batch"])[0]
    with mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts):
        run = start("eager", config(**spec["hyper"]))
        run.set(_gate_values(run, spec["settled"], rng))
        state = run.state()
        weights = {key: state[name] for key, name in run.names.items()}
        active = _active_experts(run, batch)
        logits = run.predict(batch)
        losses = [run.step(batch)[0] for _ in range(2)]
    cases.write(path, spec["hyper"], active, batch, logits, losses, weights)


def _gate_values(run, settled, rng):
    if settled is None:
        return {}
    hyper = run.wrapper.hyper
    digits = net.digit_num(hyper.expert_num)
    if settled == "rows":
        return _scattering_gate(run, hyper.top_k * digits, rng)
    values = {}
    for task, chosen in enumerate(settled):
        of_all_tasks = gate_values(run, code_logits(chosen, digits, SETTLED_DISTANCE))
        name = run.names[f"gates.{task}.selector_logits"]
        values[name] = of_all_tasks[name]
    return values


def _scattering_gate(run, size, rng):
    """Per-example gates, the same for all tasks, whose digits differ from example to example: z = W (x - 1/2)."""
    weight = rng.randn(IMAGE_SIZE**2, size)
    weight = (ROWS_DISTANCE * (weight - weight.mean(axis=0))).astype("float32")  # so the mean pixel decides nothing
    values = {run.names[key]: weight for key in run.names if key.endswith("selector_weight")}
    for key, tensor in run.net.state_dict().items():
        if key.endswith(("selector_logits", "mixing_weight", "mixing_logits")):
            values[tensor.name] = np.zeros(tensor.shape, "float32")
    return values


@paddle.no_grad()
def _active_experts(run, batch):
    run.net.eval()  # or batch norm would move its statistics
    _, weights, _ = run.net(paddle.to_tensor(batch[0]), details=True)
    return np.flatnonzero(net.greatest_weights(weights).numpy() > 0).tolist()
