"""The driver's side of the worker processes: start them, ask them, let them take turns.

A worker has the process settings of its variants, which can only be made before Paddle is imported.
It is stopped (SIGSTOP) whenever it is not asked: threads of a library that spin after their work
cannot take a core from the worker whose turn it is.
"""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
MOST_STEPS = 40  # in a turn
SETTING_PREFIXES = ("MALLOC_", "OMP_", "KMP_", "MKL_", "GOMP_", "FLAGS_")  # would be default settings no longer

TUNED = ("use_fast_path", "keep_freed_memory")  # functions of tools/engine/process.py
# tuned: which of these to call, (): default settings; threads None: the library's own default; one_core: the process
# may use no other; environment: (name, value) of further variables; label: those with another have another process
Settings = collections.namedtuple(
    "Settings",
    "tuned threads one_core python environment label",
    defaults=(TUNED, None, False, sys.executable, (), None),
)


class Absent(Exception):
    """A variant cannot be here: a part that is not built yet, or a library that is not installed."""


class WorkerError(Exception):
    """A worker failed; its message."""


def clean_environment():
    """The environment without settings of memory, threads and Paddle, which are the workers' own."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(SETTING_PREFIXES) and name != "GLIBC_TUNABLES"
    }


class Worker:
    """A process of ``worker.py``, stopped but while it answers. Use as a context manager.

    Raises:
        Absent: its interpreter cannot be started.
    """

    def __init__(self, settings, folder):
        environment = {**clean_environment(), "GLOG_minloglevel": "2", "PYTHONUNBUFFERED": "1"}
        environment.update(settings.environment)
        if settings.threads is not None:
            environment["OMP_NUM_THREADS"] = str(settings.threads)
        self.log = open(os.path.join(folder, f"worker-{len(os.listdir(folder))}.log"), "w+")
        command = [settings.python, str(HERE / "worker.py"), json.dumps(settings._asdict())]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=environment
            )
        except OSError as error:
            raise Absent(f"{settings.python}: {error.strerror}") from error
        self._read()  # it says when its imports are done
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, do, **facts):
        """Send one line, wait for the line that answers it.

        Returns:
            dict.
        Raises:
            Absent: what is asked for is not there.
            WorkerError: anything else went wrong.
        """
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and reading will say so
            self.process.stdin.write(json.dumps({"do": do, **facts}) + "\n")
            self.process.stdin.flush()
        answer = self._read()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise WorkerError(f"a worker ended; its last words:\n{self.log.read()[-2000:]}")
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


def take_turns(variants, rounds, turn_s):
    """Let variants step, A B A B.

    Args:
        variants: objects with ``name`` and ``steps(count)``, which gives the seconds of each.
        rounds: turns of each that are counted, after one to warm up.
        turn_s: how long a turn should be about; it has at least one step.
    Returns:
        {name: [seconds a step, one number a round]}.
    """
    counts = {}
    for variant in variants:
        variant.steps(1)
        counts[variant.name] = max(1, min(MOST_STEPS, round(turn_s / variant.steps(1)[0])))
    times = {variant.name: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            seconds = variant.steps(counts[variant.name])
            times[variant.name].append(sum(seconds) / len(seconds))
    return times
