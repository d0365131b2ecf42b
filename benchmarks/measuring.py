"""Times the variants of a table: each in a process of its own, in turns; and the arithmetic on their seconds."""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

from worker import Absent, Runner

HERE = pathlib.Path(__file__).resolve().parent
SETTING_PREFIXES = ("MALLOC_", "OMP_", "KMP_", "MKL_", "GOMP_", "FLAGS_", "GLIBC_TUNABLES")
MAX_STEPS = 40  # in a turn
WARM_UP = 10  # calls before those of a turn whose latencies count: a process that was stopped has cold caches

Spread = collections.namedtuple("Spread", "median low high")  # low, high: the quartiles


@dataclasses.dataclass(frozen=True)
class ProcessSettings:
    """How the process of a variant is set up.

    Attributes:
        label: the settings in words.
        tuned: names of the functions of ``engine.graphs.process_settings`` to call.
        threads: of OpenMP; None for the default.
        one_core: pin the process to one core.
        python: the interpreter.
        environment: further (name, value) pairs.
    """

    label: str = "tuned"
    tuned: tuple = ("use_fast_path", "keep_freed_memory")
    threads: int = None
    one_core: bool = False
    python: str = sys.executable
    environment: tuple = ()

    def __str__(self):
        threads = "default threads" if self.threads is None else f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.label}, {threads}" + (", one core" if self.one_core else "")


class WorkerError(Exception):
    """A worker failed; the message is the end of its log."""


def clean_environment():
    """The environment without settings for memory, threads and Paddle: those are for the worker to make."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTING_PREFIXES)}


class Worker:
    """A variant in a process of its own.

    The process is stopped (SIGSTOP) except while it answers: threads that keep spinning after their work must not take
    a core from the worker whose turn it is.

    Args:
        settings: ProcessSettings.
        log: path of the process's log.
        runner: arguments of ``worker.Runner``.
    Raises:
        Absent: the variant cannot run here.
        WorkerError: it failed, or its answers are not the dense network's.
    """

    def __init__(self, settings, log, **runner):
        environment = {**clean_environment(), "GLOG_minloglevel": "2", **dict(settings.environment)}
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        spec = {"tuned": settings.tuned, "one_core": settings.one_core, "runner": runner}
        command = [settings.python, str(HERE / "worker.py"), json.dumps(spec)]
        self.log = open(log, "w+")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        try:
            first = self._answer()
            if "absent" in first:
                raise Absent(first["absent"])
        except Exception:
            self.close()
            raise
        self.difference = first["difference"]

    def ask(self, method, *arguments):
        """What a method of ``worker.Runner`` returns."""
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # the process has ended, as _answer will report
            print(json.dumps([method, *arguments]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise WorkerError(f"a worker ended; the end of its log:\n{self.log.read()[-2000:]}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self):
        self.process.kill()  # it has nothing to write
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Bench:
    """The variants of one table; a context manager, which ends their processes.

    Args:
        sizes: tables.Sizes.
        folder: for cases and logs.
        in_process: run variants that need no process of their own in this one. For tests.
    """

    def __init__(self, sizes, folder, in_process=False):
        self.sizes, self.folder, self.in_process = sizes, folder, in_process
        self.workers, self.processes, self.absent = {}, {}, {}  # by variant: Worker or Runner, in words, why
        self.difference = None  # the greatest of a prediction from the dense network's

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()

    def path(self, ending):
        """Of a new file."""
        return os.path.join(self.folder, f"{len(os.listdir(self.folder))}{ending}")

    def case(self, settled, batch=None, **hyper):
        """Have a case written, see ``reference.write``; returns its path."""
        batch = batch or self.sizes.batch
        path, hyper = self.path(".case"), {"expert_num": 8, "top_k": 2, **self.sizes.hyper, **hyper}
        if self.in_process:
            import reference

            reference.write(path, hyper, batch, settled)
        else:
            spec = json.dumps({"hyper": hyper, "batch": batch, "settled": settled})
            environment = {**clean_environment(), "OMP_NUM_THREADS": "1", "GLOG_minloglevel": "2"}
            subprocess.run([sys.executable, str(HERE / "reference.py"), spec, path], check=True, env=environment)
        return path

    def add(self, name, kind, job, case, process=None, words="", **options):
        """Start a variant, and check its answers; if it cannot run here, ``absent`` has the reason.

        Args:
            name: of the variant.
            kind, job, case, options: see ``worker.Runner``.
            process: ProcessSettings; default: those of the tools.
            words: to describe the process by, besides its settings.
        """
        process = process or ProcessSettings()
        runner = {"kind": kind, "job": job, "case": case, "options": options}
        try:
            if self.in_process and process.python == sys.executable and not process.environment:
                worker = Runner(**runner)
            else:
                worker = Worker(process, self.path(".log"), **runner)
        except Absent as why:
            self.absent[name] = str(why)
            return
        except WorkerError as error:
            raise WorkerError(f"{name}: {error}") from error
        self.workers[name], self.processes[name] = worker, f"{process}{words}"
        if worker.difference is not None:
            self.difference = max(self.difference or 0.0, worker.difference)

    def steps(self, name, count):
        """Seconds of each of a variant's next steps."""
        return self.workers[name].ask("steps", count)

    def rows(self, *against):
        """Let the variants take turns, A B A B; returns a row for each, and for each absent one its reason.

        Args:
            against: the variants to compare with, see ``columns``.
        """
        counts = {}
        for name in self.workers:
            self.steps(name, 1)
            counts[name] = max(1, min(MAX_STEPS, round(self.sizes.turn_s / self.steps(name, 1)[0])))
        seconds = {name: [] for name in self.workers}
        for _ in range(self.sizes.rounds):
            for name, count in counts.items():
                seconds[name].append(statistics.fmean(self.steps(name, count)))
        found = [
            {"variant": name, "process": self.processes[name], "seconds": seconds[name]}
            | columns(name, seconds, self.sizes.batch, against)
            for name in self.workers
        ]
        return found + self.absent_rows()

    def latencies(self):
        """Let the variants take short turns; returns a row for each with the percentiles of all its calls."""
        sizes, seconds = self.sizes, {name: [] for name in self.workers}
        for _ in range(sizes.latency_turns):
            for name in self.workers:
                seconds[name] += self.steps(name, WARM_UP + sizes.latency_calls)[WARM_UP:]
        found = [
            {"variant": name, "process": self.processes[name], **percentiles(seconds[name])} for name in self.workers
        ]
        return found + self.absent_rows()

    def absent_rows(self):
        """A row for each variant that cannot run here, with its reason."""
        return [{"variant": name, "process": f"absent: {why}"} for name, why in self.absent.items()]


def spread(values):
    """Median and quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), low, high)


def percentiles(seconds):
    """The median and the 99th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50, ms": 1e3 * cuts[49], "p99, ms": 1e3 * cuts[98]}


def ratio(base, other):
    """How many times as fast as ``base`` ``other`` is, from the seconds of both, round by round.

    Within a round both ran next to each other, so a machine that is slower for a while changes neither the ratio nor
    its spread.
    """
    return spread([slow / fast for slow, fast in zip(base, other)])


def columns(name, seconds, examples, against):
    """A variant's figures: milliseconds a step, examples a second, and how many times as fast it is as others.

    Args:
        name: of the variant.
        seconds: {variant: [seconds a step, one number for each round]}.
        examples: in a step.
        against: the others, by their whole names or without the first word: for "eager, 2 of 64", "2 of 8" means
            "eager, 2 of 8".
    """
    own = spread(seconds[name])
    found = {"ms": Spread(*(1e3 * value for value in own)), "examples/s": examples / own.median}
    for other in against:
        base = other if other in seconds else f"{name.split(',')[0]}, {other}"
        if base in seconds:
            found[f"against {other}"] = ratio(seconds[base], seconds[name])
    return found
