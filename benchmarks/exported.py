"""Exported models, run by Paddle Inference with oneDNN: all experts, or what tools/export.py writes."""

import os
import subprocess
import sys
import tempfile

import case as cases
import paddle
from ours import ROOT, Ours

from engine.serving.export import PREFIX
from engine.serving.predict import predictor

EXPORT_TOOL = os.path.join(ROOT, "tools", "export.py")


class Exported:
    """A predictor with a case's weights.

    Args:
        path: of the case.
        pruned: exported by the tool, which leaves out the experts without weight; else the plain
            inference program with all experts.
        threads: of Paddle Inference.
    """

    def __init__(self, path, pruned, threads):
        self.image = cases.Case(path).batch[0]
        self.logits_num = len(cases.Case(path).logits)
        with tempfile.TemporaryDirectory() as folder:
            (_export_by_tool if pruned else _export_dense)(path, folder)
            self.predictor = predictor(folder, threads, onednn=True)
        self.input = self.predictor.get_input_handle(self.predictor.get_input_names()[0])
        self.outputs = [self.predictor.get_output_handle(name) for name in self.predictor.get_output_names()]
        assert len(self.outputs) == self.logits_num, "the model has other outputs than the tasks' logits"

    def predict(self):
        self.input.copy_from_cpu(self.image)
        self.predictor.run()
        return [output.copy_to_cpu() for output in self.outputs]


def _export_dense(path, folder):
    run = Ours(path, "static", dense=True).run
    with run.on():
        paddle.static.save_inference_model(
            os.path.join(folder, PREFIX), run.infer_feeds[:1], run.logits, run.executor, program=run.infer_program
        )


def _export_by_tool(path, folder):
    ours = Ours(path, "eager")
    with tempfile.TemporaryDirectory() as saved:
        os.mkdir(os.path.join(saved, "0"))
        paddle.save(ours.run.net.state_dict(), os.path.join(saved, "0", "rec.pdparams"))
        names = ", ".join(f"logits{t + 1}" for t in range(len(ours.case.logits)))
        overrides = [f"hyper_parameters.{key.replace('__', '.')}={value}" for key, value in ours.case.hyper.items()]
        overrides += [f"runner.infer_load_path={saved}", f"runner.export_path={folder}"]
        overrides.append(f"runner.save_inference_fetch_varnames=[{names}]")
        command = [sys.executable, EXPORT_TOOL, "-m", os.path.join(ROOT, "config.yaml"), "-o", *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"tools/export.py failed: {done.stderr[-1000:]}")
