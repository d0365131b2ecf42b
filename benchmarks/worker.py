"""A worker process: builds variants and steps them, as the lines on its standard input ask (see ``workers.py``).

Started with its settings as JSON. Each line is a JSON object with ``do``, and is answered by one:

    reference  case, path                  -> writes a case: weights, a batch, and the dense mixture's answers
    build      name, kind, job, case, options, outputs -> writes the variant's answers to the file ``outputs``
    steps      name, count                 -> {"seconds": [...], "used": experts in use}
    age        name                        -> sets the dead experts' moments just above the denormal numbers
    denormal   name                        -> {"share": of the dead experts' moments that are denormal}
    facts                                  -> {"versions": {...}, "peak_bytes": n, kinds' own facts by name}

or by {"absent": why} or {"error": text}.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import signal
import sys
import time
import traceback

import workers

ROOT = pathlib.Path(__file__).resolve().parent.parent
# kind -> module and class; a module is imported when asked for: PyTorch's interpreter has no Paddle
KINDS = {
    "ours": ("ours", "Ours"),
    "exported": ("exported", "Exported"),
    "baseline": ("baseline", "Baseline"),
    "torch": ("torch_model", "TorchRun"),
    "package": ("package_step", "PackageStep"),
    "batches": ("rates", "EngineBatches"),
    "loader": ("rates", "PaddleLoader"),
    "product": ("rates", "MatrixProduct"),
}
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
LIBRARIES = ("numpy", "paddlepaddle", "torch")


class Desk:
    """Answers requests; holds the variants by name."""

    def __init__(self):
        self.variants, self.take_step = {}, {}

    def reference(self, case, path):
        importlib.import_module("ours").write_reference(case, path)
        return {}

    def build(self, name, kind, job, case, options, outputs):
        module, cls = KINDS[kind]
        variant = getattr(importlib.import_module(module), cls)(case, **options)
        answers = {}
        if job in ("infer", "train"):
            answers.update({f"logits{t}": z for t, z in enumerate(variant.predict())})
        if job == "train":
            answers["losses"] = [variant.step()[0] for _ in range(2)]
        if answers:
            import numpy as np

            np.savez(outputs, **answers)
        self.variants[name] = variant
        self.take_step[name] = variant.predict if job == "infer" else variant.step
        return {}

    def steps(self, name, count):
        seconds, step = [], self.take_step[name]
        for _ in range(count):
            began = time.perf_counter()
            answer = step()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds, "used": answer[1] if isinstance(answer, tuple) else None}

    def age(self, name):
        self.variants[name].age_dead_experts()
        return {}

    def denormal(self, name):
        return {"share": self.variants[name].denormal_share()}

    def facts(self):
        versions = {"python": platform.python_version()}
        for library in LIBRARIES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[library] = importlib.metadata.version(library)
        own = {name: variant.facts() for name, variant in self.variants.items() if hasattr(variant, "facts")}
        return {"versions": versions, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **own}


def answer(desk, request):
    """One request's answer; whatever goes wrong is an answer too."""
    try:
        return getattr(desk, request.pop("do"))(**request)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            return {"error": traceback.format_exc()}
        return {"absent": f"{sys.executable} has no {error.name}"}
    except workers.Absent as why:
        return {"absent": str(why)}
    except Exception:
        return {"error": traceback.format_exc()}


def end_with_the_driver():
    """A driver that is killed could leave this process stopped for ever, with gigabytes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main():
    end_with_the_driver()
    settings = json.loads(sys.argv[1])
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
    # Libraries print; the answers go where only this function writes.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if settings["one_core"] and hasattr(os, "sched_setaffinity"):  # where it is not, the core is shared
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for function in settings["tuned"]:
        getattr(importlib.import_module("engine.graphs.process_settings"), function)()
    desk = Desk()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(desk, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
