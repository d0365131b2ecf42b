"""The worker processes, at both ends: the driver's ``Worker`` asks, the process's ``Desk`` answers.

Process settings have to be made before Paddle is imported, so variants with the same settings share a worker. It is
stopped (SIGSTOP) except while it answers: threads of a library that keep spinning after their work must not take a core
from the worker whose turn it is. A request is a line of JSON, ``{"do": name of a Desk's method, its arguments}``; the
answer is a line of JSON too: the method's dict, ``{"absent": why}`` or ``{"error": traceback}``.

NumPy is imported where it is needed, since an interpreter given for PyTorch may lack it.
"""

import collections
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
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
LIBRARIES = ("numpy", "paddlepaddle", "torch")
SETTING_PREFIXES = ("MALLOC_", "OMP_", "KMP_", "MKL_", "GOMP_", "FLAGS_", "GLIBC_TUNABLES")
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

TUNED = ("use_fast_path", "keep_freed_memory")  # functions of tools/engine/process.py
# tuned: which of them to call; threads: of OpenMP, None for the default; one_core: pin the process to one core;
# environment: further (name, value) pairs; label: a different one gives a process of its own
Settings = collections.namedtuple(
    "Settings",
    "tuned threads one_core python environment label",
    defaults=(TUNED, None, False, sys.executable, (), None),
)


class Absent(Exception):
    """A variant cannot run here, for instance because a library is not installed."""


class WorkerError(Exception):
    """A worker failed; the message is its traceback or the end of its log."""


def clean_environment():
    """The environment without settings for memory, threads and Paddle: those are for the worker to make."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}


class Worker:
    """The driver's end. A context manager; leaving it kills the process.

    Args:
        settings: Settings.
        folder: for the process's log.
    Raises:
        Absent: the interpreter cannot be started.
    """

    def __init__(self, settings, folder):
        environment = {**clean_environment(), "GLOG_minloglevel": "2", "PYTHONUNBUFFERED": "1"}
        environment.update(settings.environment)
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        self.log = open(os.path.join(folder, f"worker-{len(os.listdir(folder))}.log"), "w+")
        command = [settings.python, __file__, json.dumps(settings._asdict())]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=environment
            )
        except OSError as error:
            raise Absent(f"{settings.python}: {error.strerror}") from error
        self._read()  # an empty answer once its settings are made
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, do, **arguments):
        """Send a request and return the answer, a dict.

        Raises:
            Absent: what was asked for is not available.
            WorkerError: anything else went wrong.
        """
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # the process has ended, as _read will report
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        answer = self._read()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise WorkerError(f"a worker ended; the end of its log:\n{self.log.read()[-2000:]}")
        answer = json.loads(line)
        if "absent" in answer:
            raise Absent(answer["absent"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()  # it has nothing to save
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Case:
    """One network's weights, one batch, and the dense mixture's answers: what all variants of a case are given.

    Attributes:
        hyper: keys of ``hyper_parameters``, as ``tests/ways.config`` takes them.
        inputs, labels: the batch's: [image] or [dense, ids]; [label of task 1, ...].
        weights: {structured name: array} of the package's network.
        logits: per task, of the dense mixture in evaluation mode.
        losses: of the first two training steps, both on this batch.
        active: sorted indices of the experts with a positive weight.
    """

    def __init__(self, path):
        import numpy as np

        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays["facts"]))
        self.hyper, self.active = facts["hyper"], facts["active"]
        batch = [arrays[f"batch{i}"] for i in range(facts["items"])]
        self.inputs, self.labels = batch[: -facts["tasks"]], batch[-facts["tasks"] :]
        self.logits = [arrays[f"logits{t}"] for t in range(facts["tasks"])]
        self.losses = arrays["losses"]
        self.weights = {n[len("weight/") :]: a for n, a in arrays.items() if n.startswith("weight/")}

    @property
    def batch(self):
        """As a reader gives it."""
        return [*self.inputs, *self.labels]


def write_case(path, hyper, active, batch, logits, losses, weights):
    """Write a case; the arguments are ``Case``'s attributes, the batch as a reader gives it."""
    import numpy as np

    arrays = {f"batch{i}": item for i, item in enumerate(batch)}
    arrays.update({f"logits{t}": z for t, z in enumerate(logits)})
    arrays.update({f"weight/{name}": value for name, value in weights.items()})
    facts = json.dumps({"hyper": hyper, "active": active, "items": len(batch), "tasks": len(logits)})
    np.savez(path, facts=np.array(facts), losses=np.array(losses), **arrays)


class Desk:
    """The process's end: holds the variants by name."""

    def __init__(self):
        self.variants, self.take_step = {}, {}

    def reference(self, case, path):
        """Write a case with the dense mixture's answers."""
        importlib.import_module("ours").write_reference(case, path)
        return {}

    def build(self, name, kind, job, case, options, outputs):
        """Build a variant of class ``kind``, "module.Class", and write its answers to the file ``outputs``."""
        module, _, cls = kind.partition(".")  # imported only now: PyTorch's interpreter has no Paddle
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

    def build_faster(self):
        """Have Paddle build networks faster from now on, where nothing is measured."""
        importlib.import_module("building")
        return {}

    def steps(self, name, count):
        """Seconds of each step, and the number of experts in use if the variant says it."""
        seconds, step = [], self.take_step[name]
        for _ in range(count):
            began = time.perf_counter()
            answer = step()
            seconds.append(time.perf_counter() - began)
        return {"seconds": seconds, "used": answer[1] if isinstance(answer, tuple) else None}

    def age(self, name):
        """Set the skipped experts' moments just above the denormal numbers."""
        self.variants[name].age_skipped_experts()
        return {}

    def denormal(self, name):
        """The share of the skipped experts' moments that are denormal."""
        return {"share": self.variants[name].denormal_share()}

    def facts(self):
        """Versions, peak memory, and each variant's own facts by its name."""
        versions = {"python": platform.python_version()}
        for library in LIBRARIES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[library] = importlib.metadata.version(library)
        own = {name: variant.facts() for name, variant in self.variants.items() if hasattr(variant, "facts")}
        return {"versions": versions, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **own}

    def answer(self, request):
        """A request's answer; an exception is an answer too."""
        try:
            return getattr(self, request.pop("do"))(**request)
        except ModuleNotFoundError as error:
            if error.name not in LIBRARIES:
                return {"error": traceback.format_exc()}
            return {"absent": f"{sys.executable} has no {error.name}"}
        except Absent as why:
            return {"absent": str(why)}
        except Exception:
            return {"error": traceback.format_exc()}


def main():
    settings = json.loads(sys.argv[1])
    if sys.platform == "linux":  # if the driver is killed, do not stay behind, stopped and with gigabytes of memory
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
    answers = os.fdopen(os.dup(1), "w")  # libraries print to standard output, which becomes the log
    os.dup2(2, 1)
    if settings["one_core"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    for function in settings["tuned"]:
        getattr(importlib.import_module("engine.graphs.process_settings"), function)()
    desk = Desk()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(desk.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    import worker  # this file once more, under the name by which variants import its Absent

    worker.main()
