"""The processes of a job, as ``paddle.distributed.launch`` starts them, and what they tell each other outside a step.

Paddle's launcher describes the job in the environment. Each process has a rank; the first, of rank 0, writes files and
the log. All processes must come to the same calls of ``gather``, ``first`` and ``wait``, in the same order. Imports
paddle only once there are several.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from engine.errors import Lost, Stopped, UserError, last_line
from engine.meeting import meet
from engine.shared import load
from engine.watch import SILENT, Watch, in_time

NUMBER, RANK = "PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID"  # in the environment
SERVERS = "PADDLE_PSERVERS_IP_PORT_LIST"  # of launchers in the mode of parameter servers
NEEDED = (RANK, "PADDLE_CURRENT_ENDPOINT", "PADDLE_TRAINER_ENDPOINTS")
CONNECTED = 60  # seconds, and one more for each process, within which Paddle connects those that are all there
KILL = """
import os, sys, threading
waiting = threading.Thread(target=sys.stdin.read, daemon=True)
waiting.start()
waiting.join(float(sys.argv[2]))
if waiting.is_alive():
    print("error:", sys.argv[3], file=sys.stderr, flush=True)
    os.kill(int(sys.argv[1]), 9)
"""
# Windows has no SIGHUP
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
LONGEST_PAUSE = 1.0  # seconds between two looks at who has come


@dataclass
class Alone:
    """The only process of a job. What the loop, graphs, meter and session ask of all processes."""

    rank: int = 0
    number: int = 1
    is_told_to_stop: bool = False  # this process has got a signal
    must_stop: bool = field(default=False, init=False)  # any process had, before the last step

    @property
    def is_first(self):
        return self.rank == 0

    def gather(self, value):
        """``value`` of each process, by rank."""
        return [value]

    def first(self, function, takes_long=False):
        """What ``function()`` gives, called by the first process alone.

        Args:
            takes_long: it may take more than some seconds, as to write a checkpoint may.
        Raises:
            UserError: on all processes, if it raised one.
        """
        return function()

    def wait(self):
        """Wait until all processes have come here."""

    def count_step(self):
        """A step has been taken."""

    def loss_of_another(self, error):
        """An exception that says which process has been lost, if that may be why ``error`` was raised; else None."""

    def end(self, message=None):
        """This process ends; ``message``: the cause, if it fails and is not itself the victim of another."""


class Several(Alone):
    """One of several processes.

    Args:
        rank, number: of this process, and of all.
        timeout: seconds that the work of one process may take while the others wait.
    Raises:
        Lost: the processes cannot be connected.
    """

    def __init__(self, rank, number, timeout):
        super().__init__(rank, number)
        self.timeout, self.waits = timeout, 0
        reductions = load("processes")
        if reductions.number() == 1:  # else an earlier run in this process has connected it
            meet(rank, number, _address(), timeout)
        with _ending_if_stuck(CONNECTED + number):
            self.watch = Watch(_connect(), rank, number)
        self.gathered = reductions.gathered

    def gather(self, value):
        with self._naming_the_lost():
            return self.gathered(value)

    def first(self, function, takes_long=False):
        outcome = None
        if self.is_first:
            try:
                outcome = None, function()
            except UserError as error:
                outcome = str(error), None
        if takes_long:
            self.wait()
        message, value = self.gather(outcome)[0]
        if message is not None:
            raise UserError(message)
        return value

    def wait(self):
        """See ``Alone``. Paddle's collectives fail after 30 s on CPUs; this waits as long as ``timeout``."""
        self.waits += 1
        name, pause, until = f"wait/{self.waits}", 0.01, time.monotonic() + self.timeout
        here, seen = self._count(name, 1), {}
        while here < self.number:
            lost = self.watch.ended() or (self.watch.look(seen) if pause == LONGEST_PAUSE else None)
            if lost:
                raise Lost(lost)
            if time.monotonic() > until:
                raise Lost(
                    f"{self.number - here} of the {self.number} processes did not come within {self.timeout} s "
                    f"(runner.processes_timeout){self.watch.who_is_silent()}"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            here = self._count(name, 0)

    def _count(self, name, number):
        """Add to a number that all processes see: its sum."""
        found = in_time(lambda: self.watch.add(name, number))
        if not isinstance(found, int):
            raise Lost(found)
        return found

    def part(self):
        """The job is done. The first process stays until the others no longer ask its store."""
        self.wait()
        gone = self.watch.add("gone", 0 if self.is_first else 1)
        until = time.monotonic() + self.timeout
        while self.is_first and gone < self.number - 1 and time.monotonic() < until and not self.watch.ended():
            time.sleep(0.02)
            gone = self.watch.add("gone", 0)

    def count_step(self):
        self.watch.steps += 1

    def loss_of_another(self, error):
        _pass_over_signals()  # the launcher ends the others of its processes, which may now say what they know
        lost = self.watch.find_lost()
        return None if lost is None else Lost(f"{lost} Paddle reports: {last_line(error)}")

    @contextlib.contextmanager
    def _naming_the_lost(self):
        try:
            yield
        except Exception as error:
            raise self.loss_of_another(error) or error from error

    def end(self, message=None):
        self.watch.close(message)


def announced():
    """(rank of this process, number of processes), as the launcher tells them.

    Raises:
        UserError: the environment does not say which of several processes this is, or there are parameter servers.
    """
    if os.environ.get(SERVERS):
        raise UserError(
            f"a launcher has started parameter servers ({SERVERS} is set), which these tools do not use. Start "
            "them with --nproc_per_node or --devices, without --servers, --workers, --server_num and --worker_num."
        )
    number = _whole_number(NUMBER, os.environ.get(NUMBER) or "1")
    if number < 2:
        return 0, 1
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"this is one of {number} processes ({NUMBER}), but {', '.join(missing)} is not set. Start the tool by "
            "python -m paddle.distributed.launch, which sets it."
        )
    rank = _whole_number(RANK, os.environ[RANK])
    if not 0 <= rank < number:
        raise UserError(f"{RANK} is {rank}, but there are {number} processes ({NUMBER}).")
    return rank, number


def _whole_number(name, text):
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name} in the environment is {text!r}, but must be a whole number.") from error


def stay_for_the_others():
    """Called where this process fails, after its message: the first one keeps the store, in which the others look."""
    rank, number = announced()
    if number > 1 and rank == 0:
        time.sleep(3 * SILENT)


@contextlib.contextmanager
def joined(timeout):
    """Connect with the other processes of the job, if there are any: gives ``Alone`` or ``Several``."""
    rank, number = announced()
    if number == 1:
        yield Alone()
        return
    processes = Several(rank, number, timeout)
    try:
        yield processes
    except (Stopped, Lost):
        processes.end()
        raise
    except UserError as error:
        processes.end(str(error))
        raise
    except BaseException as error:
        processes.end(f"{type(error).__name__}: {error}")
        stay_for_the_others()
        raise
    with contextlib.suppress(Exception):  # the job is done
        processes.part()
    processes.end()


def _pass_over_signals():
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _ending_if_stuck(seconds):
    """Have another process end this one if Paddle does not connect it: no thread of this one runs meanwhile."""
    message = f"the processes of the job have not been connected within {seconds} s: one has ended meanwhile"
    command = [sys.executable, "-c", KILL, str(os.getpid()), str(seconds), message]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as killer:
        yield
        killer.kill()


def _address():
    """Where Paddle's store will be: "host:port" of the first process."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host and port:
        return f"{host}:{port}"
    return os.environ.get("PADDLE_MASTER") or os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0]


def _connect():
    """Paddle's store, once all processes are there and its collectives work, in the static graph too."""
    import paddle
    from paddle.base import core

    if not paddle.in_dynamic_mode():
        paddle.disable_static()  # what is set up in the static mode cannot be used by programs
    if paddle.get_device() == "cpu":
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it lists flags, which no user has set
            store = core.create_or_get_global_tcp_store()
            paddle.distributed.init_parallel_env()
    except (ValueError, RuntimeError, OSError) as error:
        raise Lost(f"the processes of the job cannot be connected: {last_line(error)}") from error
    return store
