"""A table's variants: started in workers, checked against the dense mixture, timed in turns, and made into rows."""

import collections
import os
import re
import signal
import statistics
import subprocess
import time

import numpy as np
from worker import TUNED, Absent, Case, Settings, Worker

REFERENCE = Settings(threads=1)  # the process that writes the cases
PREDICTIONS, LOSSES = 1e-4, 1e-3  # tolerances: of a logit, absolute; of a loss, relative
MOST_STEPS = 40  # in a turn

SETTINGS = {  # which of worker.TUNED are set -> in words
    TUNED: "tuned",
    (): "default settings",
    ("use_fast_path",): "MKL's fast path",
    ("keep_freed_memory",): "memory kept",
}
# kinds of work -> their functions or libraries; the first match counts
WORK = {
    "matrix products": r"mkl_|mklml|libiomp",
    "patches": r"im2col|Col2Im",
    "copies": r"memmove|memcpy|memset",
    "batch norm": r"BatchNorm",
    "pooling": r"Pool",
    "Adam": r"Adam|\[JIT\]|perf-\d+\.map",  # its code is generated at run time
    "Python, NumPy": r"libpython|_multiarray",
    "operating system": r"\[kernel|\[k\]",
    "other kernels": r"libphi",
    "scheduling, allocation": r"libpaddle|libcommon|libstdc|libc\.so",
    "rest": r"",
}
PERF_START_S = 1.0

# kind: "module.Class"; job: "train", "infer", or "rate" for what gives no answers to check; options: of the class;
# active_num: how many experts each training step must use, or None; on_images: not on tables
Variant = collections.namedtuple("Variant", "name kind job options settings active_num on_images")
Spread = collections.namedtuple("Spread", "median low high")  # low, high: the quartiles


class Disagreement(Exception):
    """A variant computes something other than the dense mixture."""


class Stage:
    """A context manager; leaving it ends the workers.

    Args:
        folder: for cases, answers and logs.
        one_process: None, or a Worker for all that needs no interpreter or environment of its own: where nothing is
            measured. Leaving the stage does not end it.
    """

    def __init__(self, folder, one_process=None):
        self.folder, self.one_process = folder, one_process
        self.workers, self.variants = {}, []
        self.absent = {}  # name -> why
        self.greatest_difference = None  # of any prediction from the dense mixture's
        self._reference = None  # the worker that writes the cases

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self.workers.values():
            worker.__exit__(*error)
        self._end_reference()

    def _end_reference(self):
        if self._reference is not None:
            self._reference.__exit__()
            self._reference = None

    def worker(self, settings):
        """The process with these settings, started if there is none yet.

        Raises:
            Absent: its interpreter cannot be started.
        """
        if self.one_process and (settings.python, settings.environment) == (REFERENCE.python, ()):
            return self.one_process
        if settings not in self.workers:
            self.workers[settings] = Worker(settings, self.folder)
        return self.workers[settings]

    def case(self, hyper, batch, settled):
        """Have a case written, by ``ours.write_reference``; returns its path."""
        path = os.path.join(self.folder, f"case{len(os.listdir(self.folder))}.npz")
        if self._reference is None and not self.one_process:
            self._reference = Worker(REFERENCE, self.folder)
        writer = self.one_process or self._reference
        writer.ask("reference", case={"hyper": hyper, "batch": batch, "settled": settled}, path=path)
        return path

    def add(self, name, kind, job, case, settings, **options):
        """Build a variant and check its answers. If it cannot run here, ``absent`` says why."""
        outputs = os.path.join(self.folder, f"outputs{len(os.listdir(self.folder))}.npz")
        try:
            self.worker(settings).ask(
                "build", name=name, kind=kind, job=job, case=case, options=options, outputs=outputs
            )
        except Absent as why:
            self.absent[name] = str(why)
            return
        active_num, on_images = None, True
        if job != "rate":
            reference = Case(case)
            self.check(name, reference, outputs)
            active_num, on_images = len(reference.active) if job == "train" else None, len(reference.inputs) == 1
        self.variants.append(Variant(name, kind, job, options, settings, active_num, on_images))

    def check(self, name, case, outputs):
        """Compare a variant's answers, in the file ``outputs``, with a case's.

        Raises:
            Disagreement: they differ.
        """
        with np.load(outputs) as answers:
            difference = max(float(np.abs(answers[f"logits{t}"] - z).max()) for t, z in enumerate(case.logits))
            if not difference <= PREDICTIONS:
                raise Disagreement(f"{name}: a prediction differs from the dense mixture's by {difference:.1e}")
            self.greatest_difference = max(self.greatest_difference or 0.0, difference)
            if "losses" in answers and not np.abs(answers["losses"] / case.losses - 1).max() <= LOSSES:
                raise Disagreement(
                    f"{name}: the first two steps' losses are {answers['losses']}, the dense mixture's {case.losses}"
                )

    def ask(self, variant, do, **arguments):
        """Ask a variant's worker about it."""
        return self.worker(variant.settings).ask(do, name=variant.name, **arguments)

    def steps(self, variant, count):
        """Let a variant take steps: the seconds of each.

        Raises:
            Disagreement: it did not use as many experts as the gates give weight to.
        """
        answer = self.ask(variant, "steps", count=count)
        if variant.active_num is not None and answer["used"] not in (None, variant.active_num):
            raise Disagreement(f"{variant.name}: {answer['used']} experts were in use, not {variant.active_num}")
        return answer["seconds"]

    def times(self, rounds, turn_s):
        """Let the variants take turns, A B A B.

        Args:
            rounds: turns of each, after a warm-up.
            turn_s: about how long a turn should last; it has at least one step.
        Returns:
            {name: [seconds a step, one number a round]}.
        """
        self._end_reference()  # no longer needed, and large
        counts = {}
        for variant in self.variants:
            self.steps(variant, 1)
            counts[variant.name] = max(1, min(MOST_STEPS, round(turn_s / self.steps(variant, 1)[0])))
        times = {variant.name: [] for variant in self.variants}
        for _ in range(rounds):
            for variant in self.variants:
                times[variant.name].append(statistics.fmean(self.steps(variant, counts[variant.name])))
        return times

    def profile(self, variant, count):
        """Let a variant take steps under ``perf``.

        Returns:
            ({kind of work: its share of the samples of all threads}, the seconds of each step).
        """
        data = os.path.join(self.folder, "perf.data")
        pid = str(self.worker(variant.settings).process.pid)
        recorder = subprocess.Popen(["perf", "record", "-q", "-F", "999", "-o", data, "-p", pid])
        time.sleep(PERF_START_S)
        seconds = self.steps(variant, count)
        recorder.send_signal(signal.SIGINT)
        recorder.wait()
        script = ["perf", "script", "-i", data, "-F", "ip,sym,dso"]
        text = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout
        kinds = [
            next(kind for kind, pattern in WORK.items() if re.search(pattern, line))
            for line in text.splitlines()
            if line.strip()
        ]
        return {kind: kinds.count(kind) / len(kinds) for kind in WORK}, seconds

    def rows(self, times, examples, against):
        """A row for each variant, see ``columns``; absent ones come last, with the reason."""
        found = []
        for variant in self.variants:
            row = {"variant": variant.name, "process": _describe(variant), "seconds": times[variant.name]}
            found.append({**row, **columns(variant.name, times, examples, against)})
        return found + [{"variant": name, "process": f"absent: {why}"} for name, why in self.absent.items()]


def _describe(variant):
    """A variant's process in words."""
    settings = variant.settings
    threads = variant.options.get("threads", settings.threads)
    words = [SETTINGS[settings.tuned]]
    if variant.options.get("fast"):
        images = "channels-last" if variant.on_images else ""
        words += filter(None, [images, "fused Adam" if variant.job == "train" else ""])
    words.append("default threads" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}")
    if settings.one_core:
        words.append("one core")
    if variant.kind == "rates.PackageStep":
        words.append("another function, not checked")
    return ", ".join(words)


def spread(values):
    """Median and quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def ratio(base, other):
    """How many times as fast as ``base`` ``other`` is, from the seconds of both, round by round.

    Dividing within a round, where both ran next to each other, keeps a machine that is slower for a while out of
    the ratio and its spread.
    """
    return spread([slow / fast for slow, fast in zip(base, other)])


def columns(name, seconds, examples, against):
    """A variant's figures: milliseconds a step, examples a second, and how many times as fast it is as others.

    Args:
        name: the variant's.
        seconds: {variant: [seconds a step, one number a round]}.
        examples: in a step.
        against: the others, by whole names or without the first word: for "eager, 2 of 64", "2 of 8" means
            "eager, 2 of 8".
    """
    own = spread(seconds[name])
    found = {"ms": Spread(*(1e3 * value for value in own)), "examples/s": examples / own.median}
    for other in against:
        base = other if other in seconds else f"{name.split(',')[0]}, {other}"
        if base in seconds:
            found[f"against {other}"] = ratio(seconds[base], seconds[name])
    return found
