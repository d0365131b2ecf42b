"""What is timed in Paddle's processes: the package, its exported models, and things that give no answers to check."""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import paddle

import net
from engine.batches import Batches, find_reader, open_dataset
from engine.config import load_config
from engine.graphs import executor
from engine.graphs.dynamic import DynamicGraph
from engine.graphs.static import StaticGraph
from engine.keys import read_settings
from engine.package import Package
from engine.serving.exported import predictor, why_no_onednn
from engine.serving.signature import PREFIX
from support import oracles, ways

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "config.yaml")
AGED_MOMENTS = {"_moment1_": 1e-30, "_moment2_": 2e-38}  # see age_skipped_experts
SMALLEST_NORMAL = np.finfo(np.float32).tiny


def dense_network():
    """Within this context the package's networks compute every expert on every example."""
    return mock.patch.object(net, "mix_needed_experts", oracles.mix_all_experts)


class PackageModel:
    """The package; a training step is one of the tools' graphs.

    Args:
        case: cases.Case.
        mode: one of ``ways.WAYS``.
        dense: compute all experts, whatever their weights, by Paddle's layers.
        tune: as under ``runner.tune_process``.
        kernels: as ``hyper_parameters.kernels``.
        seed: of the initial weights, where the case has none.
    """

    def __init__(self, case, mode, dense=False, tune=True, kernels="auto", seed=0):
        self.case, self.in_training, self.seed = case, False, seed
        self.network = dense_network if dense else contextlib.nullcontext
        executor.keep_tensors(paddle.CPUPlace())
        flat = ways.config(**case.hyper, kernels=False if dense else kernels)
        with self.network():
            self.run = ways.start("static" if mode == "static" else "eager", flat)
            self.scope = getattr(self.run, "on", contextlib.nullcontext)
            self.graph = self._tools_graph(mode, flat, tune)
        self.run.set({self.run.names[key]: value for key, value in case.weights.items()})

    def _tools_graph(self, mode, flat, tune):
        """A graph of the tools for training, which shares its weights with ``self.run``."""
        run, kind = self.run, StaticGraph if mode == "static" else DynamicGraph
        keys = {key: value for key, value in load_config(CONFIG).items() if not key.startswith("hyper_parameters.")}
        settings = read_settings(keys, "train")
        settings.to_static, settings.tune_process, settings.seed = mode == "to_static", tune, self.seed
        with self.scope(), paddle.utils.unique_name.guard():  # so that parameters have the same names as the run's
            with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
                graph = kind(Package(str(ROOT)), {**keys, **flat}, settings, "train", paddle.CPUPlace())
        if mode != "static":
            run.net, run.optimizer, run.wrapper = graph.net, graph.optimizer, graph.model
        elif tune:
            run.inference.program = executor.unchanging(run.inference.program)
        return graph

    def take(self, case):
        """Go on with the batch of another case."""
        self.case = case

    def predict(self):
        """Logits of each task."""
        self.in_training = False
        with self.network():
            return self.run.outputs(self.case.batch)

    def step(self):
        """One training step: (loss before it, experts in use, None for a per-example gate)."""
        with self.network(), self.scope():
            if not self.in_training:
                self.graph.begin_epoch()
                self.in_training = True
            step, _ = self.graph.train_step(self.case.batch)
        used = np.asarray(step.tensors["experts_used"])  # of a per-example gate a mean over the examples
        return float(step.tensors["loss"]), int(used) if used.dtype.kind == "i" else None

    def age_skipped_experts(self):
        """Set the skipped experts' Adam moments to what they are after a long time.

        A step leaves 0.9 of the first moment and 0.999 of the second, which from its usual size takes some 70,000
        steps to become denormal. From here both do within 600.
        """
        state, aged = self._skipped_moments(), {}
        for name, value in state.items():
            size = next(size for kind, size in AGED_MOMENTS.items() if kind in name)
            aged[name] = np.full_like(np.asarray(value), size)
        if not hasattr(self.run, "optimizer"):
            return self.run.set(aged)
        for name, value in aged.items():
            state[name].set_value(value)

    def denormal_share(self):
        """The share of the skipped experts' moments that are denormal numbers."""
        values = np.concatenate([np.ravel(value) for value in self._skipped_moments().values()])
        return float(((values != 0) & (np.abs(values) < SMALLEST_NORMAL)).mean())

    def _skipped_moments(self):
        if hasattr(self.run, "optimizer"):
            state = self.run.optimizer.state_dict()  # the optimizer's own tensors, not copies
        else:
            state = self.graph.program.state_dict("opt", self.run.scope)
        skipped = [f"experts.{i}." for i in range(self.case.hyper["expert_num"]) if i not in self.case.active]
        parameters = tuple(name for key, name in self.run.names.items() if key.startswith(tuple(skipped)))
        return {
            name: value
            for name, value in state.items()
            if name.startswith(parameters) and any(kind in name for kind in AGED_MOMENTS)
        }


class ExportedModel:
    """An exported model, run by Paddle Inference as tools/predict.py does.

    Args:
        case: cases.Case.
        pruned: exported by tools/export.py, without the experts that have no weight; otherwise the plain inference
            program with all experts.
        threads: of Paddle Inference.
    """

    def __init__(self, case, pruned, threads):
        with tempfile.TemporaryDirectory() as folder:
            (_export_by_tool if pruned else _export_dense)(case, folder)
            self.predictor = predictor(folder, threads, onednn=why_no_onednn(folder, len(case.batch[0]) > 1) is None)
        handles = [self.predictor.get_input_handle(name) for name in self.predictor.get_input_names()]
        self.inputs = list(zip(handles, case.inputs))
        self.outputs = [self.predictor.get_output_handle(name) for name in self.predictor.get_output_names()]
        assert (len(handles), len(self.outputs)) == (len(case.inputs), len(case.logits)), "not the case's interface"

    def predict(self):
        """Logits of each task."""
        for handle, array in self.inputs:
            handle.copy_from_cpu(array)
        self.predictor.run()
        return [output.copy_to_cpu() for output in self.outputs]


def _export_dense(case, folder):
    run = PackageModel(case, "static", dense=True).run
    feeds, path = run.inference.feeds[: len(case.inputs)], os.path.join(folder, PREFIX)
    with run.on():
        paddle.static.save_inference_model(
            path, feeds, run.inference.logits, run.executor, program=run.inference.program
        )


def _export_by_tool(case, folder):
    state = PackageModel(case, "eager").run.net.state_dict()
    with tempfile.TemporaryDirectory() as checkpoints:
        os.mkdir(os.path.join(checkpoints, "0"))
        paddle.save(state, os.path.join(checkpoints, "0", "rec.pdparams"))
        outputs = ", ".join(f"logits{t + 1}" for t in range(len(case.logits)))
        overrides = [f"{key}={value}" for key, value in ways.config(**case.hyper).items()]
        overrides += [f"runner.infer_load_path={checkpoints}", f"runner.export_path={folder}"]
        overrides.append(f"runner.save_inference_fetch_varnames=[{outputs}]")
        command = [sys.executable, str(ROOT / "tools" / "export.py"), "-m", CONFIG, "-o", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class EngineBatches:
    """The tools' ``Batches``, shuffled; a step is one batch.

    Args:
        case: None.
        data: folder of the data files.
        batch: examples in a batch.
    """

    def __init__(self, case, data, batch):
        config = load_config(CONFIG, [f"runner.train_data_dir={data}", f"runner.train_batch_size={batch}"])
        self.settings, self.batch = read_settings(config, "train"), batch
        reader = find_reader(Package(str(ROOT)), self.settings, "train")
        self.dataset = open_dataset(reader, self.settings, config, "train")
        self.batches = self._loader()
        self.epoch, self.left = 0, iter(())

    def _loader(self):
        """A function of the epoch's number that returns its batches."""
        return Batches(self.dataset, self.settings, "train")

    def step(self):
        """Read a batch, of the next epoch if this one is over."""
        batch = next(self.left, None)
        if batch is None:
            self.left, self.epoch = iter(self.batches(self.epoch)), self.epoch + 1
            batch = next(self.left)
        assert len(batch[0]) == self.batch and np.asarray(batch[0]).dtype == np.float32

    def size(self):
        """(number of examples, bytes of their arrays)."""
        arrays = [value for value in vars(self.dataset).values() if isinstance(value, np.ndarray)]
        return len(self.dataset), sum(array.nbytes for array in arrays)


class PaddleLoader(EngineBatches):
    """Paddle's loader, example by example, as in PaddleRec's tools."""

    def _loader(self):
        loader = paddle.io.DataLoader(
            self.dataset, batch_size=self.batch, shuffle=True, drop_last=True, places=paddle.CPUPlace()
        )
        return lambda epoch: loader


class MatrixProduct:
    """A step is one float32 product of two square matrices of ``size``."""

    def __init__(self, case, size):
        self.left, self.right = paddle.rand([size, size]), paddle.rand([size, size])

    @paddle.no_grad()
    def step(self):
        float((self.left @ self.right)[0, 0])  # waits for the product
