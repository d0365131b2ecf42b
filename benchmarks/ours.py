"""The package as a variant: trained by the tools' own graphs, or exported; and the cases that it writes."""

import contextlib
import os
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import oracles
import paddle
from ways import code_logits, config, gate_values, start
from worker import ROOT, Case, write_case

import net
from engine.config import load_config
from engine.graphs import executor
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph
from engine.keys import read_settings
from engine.package import Package
from engine.serving.export import PREFIX
from engine.serving.predict import predictor

CONFIG = str(ROOT / "config.yaml")
SETTLED_LOGIT = 0.8  # outside the smooth-step's band, which is 1 wide
PER_EXAMPLE_LOGIT = 1e4  # a typical one: of a whole batch, hardly any lies in the band
AGED_MOMENTS = {"_moment1_": 1e-30, "_moment2_": 2e-38}  # see age_skipped_experts
SMALLEST_NORMAL = np.finfo(np.float32).tiny


class Ours:
    """The package with a case's weights; a training step is a step of the tools.

    Args:
        path: of the case.
        way: one of ``ways.WAYS``.
        dense: compute all experts, whatever their weights.
        tune: as under ``runner.tune_process``.
    """

    def __init__(self, path, way, dense=False, tune=True):
        self.case, self.dense, self.in_training = Case(path), dense, False
        executor.keep_tensors(paddle.CPUPlace())
        flat = config(**self.case.hyper)
        with self._mixture():
            self.run = start("static" if way == "static" else "eager", flat)
            self.graph = _tools_graph(self.run, way, flat, tune)
        self.run.set({self.run.names[key]: value for key, value in self.case.weights.items()})

    def _mixture(self):
        return _dense_mixture() if self.dense else contextlib.nullcontext()

    def predict(self):
        """Logits of each task."""
        self.in_training = False
        with self._mixture():
            return self.run.predict(self.case.batch)

    def step(self):
        """One training step: (loss before it, experts in use)."""
        with self._mixture(), _on(self.run):
            if not self.in_training:
                self.graph.begin_epoch()
                self.in_training = True
            step, _ = self.graph.train_step(self.case.batch)
        used = np.asarray(step.tensors["experts_used"])
        # of a per-example gate it is a mean over the examples, not the number of experts computed
        return float(step.tensors["loss"]), int(used) if used.dtype.kind == "i" else None

    def age_skipped_experts(self):
        """Set the skipped experts' Adam moments to what they are after a long time.

        A step leaves 0.9 of the first moment and 0.999 of the second, which from its usual size takes some 70,000
        steps to become denormal. From here both do within 600.
        """
        aged = {}
        for name, value in self._skipped_moments().items():
            size = next(size for kind, size in AGED_MOMENTS.items() if kind in name)
            aged[name] = np.full_like(value, size)
        if not hasattr(self.run, "optimizer"):
            return self.run.set(aged)
        state = self.run.optimizer.state_dict()  # the optimizer's own tensors, not copies
        for name, value in aged.items():
            state[name].set_value(value)

    def denormal_share(self):
        """The share of the skipped experts' moments that are denormal numbers."""
        values = np.concatenate([np.ravel(value) for value in self._skipped_moments().values()])
        return float(((values != 0) & (np.abs(values) < SMALLEST_NORMAL)).mean())

    def _skipped_moments(self):
        if hasattr(self.run, "optimizer"):
            state = self.run.optimizer.state_dict()
        else:
            state = self.graph.program.state_dict("opt", self.run.scope)
        skipped = [f"experts.{i}." for i in range(self.run.wrapper.hyper.expert_num) if i not in self.case.active]
        parameters = tuple(name for key, name in self.run.names.items() if key.startswith(tuple(skipped)))
        return {
            name: np.asarray(value)
            for name, value in state.items()
            if name.startswith(parameters) and any(kind in name for kind in AGED_MOMENTS)
        }


def _tools_graph(run, way, flat, tune):
    """The tools' graph for training, sharing its weights with ``run``."""
    keys = {key: value for key, value in load_config(CONFIG).items() if not key.startswith("hyper_parameters.")}
    settings = read_settings(keys, "train")
    settings.to_static, settings.tune_process = way == "to_static", tune
    kind = StaticGraph if way == "static" else DynamicGraph
    with _on(run), paddle.utils.unique_name.guard():  # so that parameters have the same names as the run's
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            graph = kind(Package(str(ROOT)), {**keys, **flat}, settings, "train", paddle.CPUPlace())
    if way != "static":
        run.net, run.optimizer, run.wrapper = graph.net, graph.optimizer, graph.model
    elif tune:
        run.inference.program = executor.unchanging(run.inference.program)
    return graph


def _on(run):
    return run.on() if hasattr(run, "on") else contextlib.nullcontext()


def _dense_mixture():
    return mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts)


class Exported:
    """An exported model with a case's weights, run by Paddle Inference with oneDNN.

    Args:
        path: of the case.
        pruned: exported by tools/export.py, which leaves out experts without weight; otherwise the plain inference
            program with all experts.
        threads: of Paddle Inference.
    """

    def __init__(self, path, pruned, threads):
        case = Case(path)
        with tempfile.TemporaryDirectory() as folder:
            (_export_by_tool if pruned else _export_dense)(path, folder)
            self.predictor = predictor(folder, threads, onednn=True)
        handles = [self.predictor.get_input_handle(name) for name in self.predictor.get_input_names()]
        self.inputs = list(zip(handles, case.inputs))
        self.outputs = [self.predictor.get_output_handle(name) for name in self.predictor.get_output_names()]
        assert len(self.outputs) == len(case.logits), "the model's outputs are not just the tasks' logits"
        assert len(handles) == len(case.inputs), "the model's inputs are not the case's"

    def predict(self):
        """Logits of each task."""
        for handle, array in self.inputs:
            handle.copy_from_cpu(array)
        self.predictor.run()
        return [output.copy_to_cpu() for output in self.outputs]


def _export_dense(path, folder):
    run = Ours(path, "static", dense=True).run
    found, path = run.inference, os.path.join(folder, PREFIX)
    feeds, _ = run.wrapper.hyper.split(found.feeds)
    with run.on():
        paddle.static.save_inference_model(path, feeds, found.logits, run.executor, program=found.program)


def _export_by_tool(path, folder):
    ours = Ours(path, "eager")
    with tempfile.TemporaryDirectory() as saved:
        os.mkdir(os.path.join(saved, "0"))
        paddle.save(ours.run.net.state_dict(), os.path.join(saved, "0", "rec.pdparams"))
        names = ", ".join(f"logits{t + 1}" for t in range(len(ours.case.logits)))
        overrides = [f"hyper_parameters.{key.replace('__', '.')}={value}" for key, value in ours.case.hyper.items()]
        overrides += [f"runner.infer_load_path={saved}", f"runner.export_path={folder}"]
        overrides.append(f"runner.save_inference_fetch_varnames=[{names}]")
        command = [sys.executable, str(ROOT / "tools" / "export.py"), "-m", CONFIG, "-o", *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"tools/export.py failed: {done.stderr[-1000:]}")


def write_reference(spec, path):
    """Write a case: weights, a batch of noise in the real size, and the dense mixture's answers.

    The cost of a step does not depend on the inputs, though a per-example gate's choice does.

    Args:
        spec: {"hyper": keys as ``ways.config`` takes them, "batch": examples, "settled": what the gates have
            settled on: None for nothing; a list of experts for each task, for static gates; or "per example" for
            per-example gates that choose different experts for each example}.
        path: of the file to write.
    """
    rng = np.random.RandomState(0)
    with _dense_mixture():
        run = start("eager", config(**spec["hyper"]))
        batch = _noise(run.wrapper.hyper, spec["batch"], rng)
        run.set(_gate_values(run, spec["settled"], rng))
        state = run.state()
        weights = {key: state[name] for key, name in run.names.items()}
        active = _active_experts(run, batch)
        logits = run.predict(batch)
        losses = [run.step(batch)[0] for _ in range(2)]
    write_case(path, spec["hyper"], active, batch, logits, losses, weights)


def _noise(hyper, size, rng):
    """A batch as a reader gives it."""
    draw = {"image": rng.rand, "dense": rng.randn}
    inputs = [
        rng.randint(0, hyper.input_vocabulary_sizes, [size, *shape])
        if name == "ids"
        else draw[name](size, *shape).astype("float32")
        for name, shape, _ in hyper.inputs()
    ]
    kinds = [task.kind for task in hyper.task_list()]
    labels = [rng.randint(0, max(2, kind.out_size), size).astype(kind.label_dtype) for kind in kinds]
    return [*inputs, *labels]


def _gate_values(run, settled, rng):
    if settled is None:
        return {}
    hyper = run.wrapper.hyper
    digits = net.digit_num(hyper.expert_num)
    if settled == "per example":
        return _scattering_gates(run, hyper.top_k * digits, rng)
    values = {}
    for task, chosen in enumerate(settled):
        name = run.names[f"gates.{task}.selector_logits"]
        values[name] = gate_values(run, code_logits(chosen, digits, SETTLED_LOGIT))[name]
    return values


def _scattering_gates(run, size, rng):
    """Per-example gates, the same for all tasks, whose selector logits W x vary from example to example."""
    weight = rng.randn(run.net.gates[0].feature_size, size)
    weight -= weight.mean(axis=0)  # so that an image's mean brightness decides nothing
    values = {}
    for key, tensor in run.net.state_dict().items():
        if key.endswith("selector_weight"):
            values[tensor.name] = (PER_EXAMPLE_LOGIT * weight).astype("float32")
        elif key.endswith(("selector_logits", "mixing_weight", "mixing_logits")):
            values[tensor.name] = np.zeros(tensor.shape, "float32")
    return values


@paddle.no_grad()
def _active_experts(run, batch):
    run.net.eval()  # so that batch norm leaves its statistics alone
    inputs, _ = run.wrapper.hyper.split([paddle.to_tensor(item) for item in batch])
    _, weights, _ = run.net(*inputs, details=True)
    return np.flatnonzero(net.greatest_weights(weights).numpy() > 0).tolist()
