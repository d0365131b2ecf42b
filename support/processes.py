"""Tools in processes of their own, forked from one that has imported Paddle: each starts two seconds sooner.

They are killed, get signals and hold locks as a user's do. Where the start itself is under test, start a Python anew.
"""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
from multiprocessing import forkserver

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(tool, arguments, cwd, stdout, stderr, new_group=False):
    """A tool under way, with what ``subprocess.Popen`` has to wait for it, and to signal it.

    Args:
        tool: its name, without .py.
        arguments: texts, as on a command line.
        cwd: its working folder.
        stdout, stderr: paths of files to append to.
        new_group: give it a process group of its own.
    """
    arguments = [str(argument) for argument in arguments]
    if "forkserver" in multiprocessing.get_all_start_methods():
        return _Forked(tool, arguments, str(cwd), str(stdout), str(stderr), new_group)
    with open(stdout, "ab") as out, open(stderr, "ab") as err:
        command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
        return subprocess.Popen(command, cwd=cwd, stdout=out, stderr=err, start_new_session=new_group)


def ensure_running():
    """Start the process to fork from, which needs the tools on its path to import them."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT / "tools")
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


class _Forked:
    def __init__(self, *arguments):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["engine.jobs"])
        ensure_running()
        self.process = context.Process(target=_run, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a tool", timeout)
        return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None:  # the number may be another process's by now
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(tool, arguments, cwd, stdout, stderr, new_group):
    if new_group:
        os.setsid()
    multiprocessing.set_start_method(None, force=True)  # Python's default, not that of a process of this kind
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started in the background ignore these two
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    as_script(tool, arguments)
    from engine import cli

    cli.main(tool)


def as_script(tool, arguments=()):
    """Give this process the command line and the module path of a tool's script."""
    script = ROOT / "tools" / f"{tool}.py"
    sys.argv = [str(script), *arguments]
    sys.path[:] = [str(script.parent), *(path for path in sys.path if not _is_in_project(path))]


def _is_in_project(path):
    """Whether a folder is the project's own; its environment's are not."""
    path = pathlib.Path(path or ".").resolve()
    return "site-packages" not in path.parts and (path == ROOT or ROOT in path.parents)
