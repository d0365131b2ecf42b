"""Several processes of one job on this machine, as Paddle's launcher would start them; and threads that stand for them.

The launcher itself takes some seconds to start; tests of what it does start it.
"""

import multiprocessing
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import threading

from engine.processes import Alone
from support import processes

TIMEOUT_S = 300


def environments(number):
    """The environment of each process of a job on this machine."""
    sockets = [socket.socket() for _ in range(number + 1)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    master, *endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    of_job = {"PADDLE_TRAINERS_NUM": str(number), "PADDLE_MASTER": master, "PADDLE_DISTRI_BACKEND": "gloo"}
    of_job.update(PADDLE_TRAINER_ENDPOINTS=",".join(endpoints), PADDLE_LOCAL_SIZE=str(number))
    return [
        {**of_job, "PADDLE_TRAINER_ID": str(rank), "PADDLE_CURRENT_ENDPOINT": endpoints[rank]} for rank in range(number)
    ]


class Job:
    """A job under way: each process runs command lines of tools, one after another.

    Args:
        number: of processes; 1: without a launcher.
        commands: pairs (tool, arguments).
        cwd: their working folder, where each one's streams are in a file.
    """

    def __init__(self, number, commands, cwd):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["engine.jobs"])
        processes.ensure_running()
        self.logs = [pathlib.Path(cwd, f"process{rank}.of{number}.log") for rank in range(number)]
        commands = [(tool, [str(argument) for argument in arguments]) for tool, arguments in commands]
        self.processes = [
            context.Process(target=_run, args=(environment, commands, str(cwd), str(log)))
            for environment, log in zip(environments(number) if number > 1 else [{}], self.logs)
        ]
        for process in self.processes:
            process.start()

    def wait(self):
        """The exit codes and what each process has written."""
        try:
            for process in self.processes:
                process.join(TIMEOUT_S)
        finally:
            for process in self.processes:
                process.kill()
        return [process.exitcode for process in self.processes], [log.read_text(encoding="utf-8") for log in self.logs]

    def signal(self, rank, number):
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)


def run(number, commands, cwd):
    """``Job(...).wait()``."""
    return Job(number, commands, cwd).wait()


def _run(environment, commands, cwd, log):
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    processes.as_script("trainer")
    from engine import cli

    for tool, arguments in commands:
        cli.main(tool, arguments)


def launch(number, tool, arguments, cwd, **options):
    """A tool under Paddle's launcher, under way: its logs are in ``cwd``/log."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(number)]
    command += [str(processes.ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )


# ---------------------------------------------------------------------------------------- threads


class _Thread(Alone):
    """One of several threads that tell each other what processes would."""

    def __init__(self, rank, number, places, barrier):
        super().__init__(rank, number)
        self.places, self.barrier = places, barrier

    def gather(self, value):
        self.places[self.rank] = pickle.dumps(value)
        self.barrier.wait(TIMEOUT_S)
        found = [pickle.loads(place) for place in self.places]
        self.barrier.wait(TIMEOUT_S)
        return found

    def first(self, function, takes_long=False):
        return self.gather(function() if self.is_first else None)[0]

    def wait(self):
        self.gather(None)


def in_threads(number, function):
    """What ``function(processes)`` gives in each of ``number`` threads, by rank; an exception of one is raised."""
    places, barrier, found, errors = [None] * number, threading.Barrier(number), [None] * number, []

    def run(rank):
        try:
            found[rank] = function(_Thread(rank, number, places, barrier))
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return found
