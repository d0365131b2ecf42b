"""The process of one variant: python benchmarks/worker.py SPEC

Builds the variant, compares its answers with the dense network's, and takes steps when asked. SPEC is JSON with the
process's settings and the arguments of ``Runner``. Process settings have to be made before Paddle is imported, so this
file imports no library at its top. The first line of output is {"difference": ...} or {"absent": why}. Each line of
input, [name of a Runner's method, arguments ...], is answered by a line with what it returns. An exception ends the
process.
"""

import ctypes
import importlib
import json
import os
import pathlib
import resource
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARIES = ("numpy", "paddlepaddle", "torch", "paddle", "torch_rechub", "deepctr_torch", "requests")
PREDICTION_TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-3  # of a logit, absolute; of a loss, relative
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class Absent(Exception):
    """A variant cannot run here, for instance because a library is not installed."""


class Disagreement(Exception):
    """A variant computes something else than the dense network."""


class Runner:
    """A variant, checked and ready to take steps.

    Args:
        kind: "module.Class" of the variant.
        job: "train", "infer", or "rate" for a variant that has no answers to check.
        case: path of the case, or None.
        options: further arguments of the class.
    """

    def __init__(self, kind, job, case, options):
        module, _, name = kind.partition(".")
        self.case = importlib.import_module("cases").read(case) if case else None
        self.variant = getattr(importlib.import_module(module), name)(self.case, **options)
        self.step = self.variant.predict if job == "infer" else self.variant.step
        self.counts_experts = job == "train"
        self.difference = None if job == "rate" else greatest_difference(self.variant, self.case, job)

    def ask(self, method, *arguments):
        """What another method returns; with ``close``, the interface of ``measuring.Worker``."""
        return getattr(self, method)(*arguments)

    def close(self):
        """Nothing is to be ended."""

    def steps(self, count):
        """Take steps; returns the seconds of each.

        Raises:
            Disagreement: a step computed other experts than those with weight.
        """
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            answer = self.step()
            seconds.append(time.perf_counter() - began)
        if self.counts_experts and answer[1] not in (None, len(self.case.active)):
            raise Disagreement(f"{answer[1]} experts were in use, not {len(self.case.active)}")
        return seconds

    def train(self, size, epochs, seed):
        """Train on all rows of the case.

        Returns:
            (seconds of each step, the making of its batch included; experts in use at the last, None: all).
        """
        seconds, began = [], time.perf_counter()
        for batch in self.case.batches(size, epochs, seed):
            self.variant.take(batch)
            answer = self.step()
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        return seconds, answer[1] if isinstance(answer, tuple) else None

    def scores(self, path):
        """What is predicted for the rows of another case: a list for each task."""
        self.variant.take(importlib.import_module("cases").read(path))
        return [scores.reshape(-1).tolist() for scores in self.variant.predict()]

    def peak_bytes(self):
        """Peak memory of the process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def call(self, method):
        """What another method of the variant returns."""
        return getattr(self.variant, method)()


def greatest_difference(variant, case, job):
    """Of a prediction from the dense network's.

    Raises:
        Disagreement: it, or that of the losses of the first two training steps, is above the tolerance.
    """
    predicted = variant.predict()
    difference = max(float(abs(ours - theirs).max()) for ours, theirs in zip(predicted, case.logits))
    if not difference <= PREDICTION_TOLERANCE:
        raise Disagreement(f"a prediction differs from the dense network's by {difference:.1e}")
    if job == "train":
        losses = [variant.step()[0] for _ in range(2)]
        if not all(abs(ours / theirs - 1) <= LOSS_TOLERANCE for ours, theirs in zip(losses, case.losses)):
            raise Disagreement(f"the losses of the first two steps are {losses}, the dense network's {case.losses}")
    return difference


def main():
    spec = json.loads(sys.argv[1])
    if sys.platform == "linux":  # end with the driver, instead of staying behind, stopped and with gigabytes of memory
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # libraries print to standard output, which becomes the log
    os.dup2(2, 1)
    if spec["one_core"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for function in spec["tuned"]:
        getattr(importlib.import_module("engine.graphs.process_settings"), function)()
    from worker import Absent, Runner  # by the name that variants use

    try:
        runner = Runner(**spec["runner"])
    except Absent as why:
        print(json.dumps({"absent": str(why)}), file=answers)
        return
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        print(json.dumps({"absent": f"{sys.executable} has no {error.name}"}), file=answers)
        return
    print(json.dumps({"difference": runner.difference}), file=answers)
    for line in sys.stdin:
        print(json.dumps(runner.ask(*json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
