"""A fault at every system call that writes a checkpoint: python tests/stress/save_faults.py

A trained run with older checkpoints (two epochs, and one inside the next) writes its next ones, inside the epoch and
after it, and deletes the oldest. strace counts the calls that touch the output folder. Then each call in turn fails
(disk full, input/output error), or the process is killed at it. After each: every checkpoint is the old or the new one,
bit by bit; a resume takes the newest one and ends in the bits of the uninterrupted run; a failure is one message.
Needs Linux and strace. tests/engine/checkpoints/test_folders.py makes some of the faults.
"""

import argparse
import collections
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from engine.checkpoints import folders, manifests, weight_files  # noqa: E402  (the path is set above)
from engine.checkpoints.which import LAST_STEP, to_resume  # noqa: E402  (likewise)
from engine.errors import UserError  # noqa: E402  (likewise)
from support.trained import GRAPHS, Trained  # noqa: E402  (likewise)

STEPS = 2  # an epoch
KEPT, NEW = 1, 2  # epochs: the last one before, and the new one; 0 is deleted then
LEFT_S = 30  # for one trial
ERRORS = {
    "openat": "ENOSPC", "write": "ENOSPC", "mkdir": "ENOSPC", "fsync": "EIO", "rename": "EIO", "unlink": "EIO",
    "unlinkat": "EIO", "rmdir": "EIO", "close": "EIO", "read": "EIO", "getdents64": "EIO",
}  # fmt: skip
SAVED, REFUSED, FAILED = 0, 2, 3  # exit codes of a trial's process


class Run:
    """A run of one graph that can be taken back to where it was before its next checkpoints.

    Args:
        name: "dynamic" or "static".
        folder: for its files.
    """

    def __init__(self, name, folder):
        self.folder = folder
        self.trained = Trained(name, folder, "runner.keep_last=2", "runner.epochs=4")
        self.session, self.output = self.trained.session, self.trained.folder
        shutil.rmtree(self.trained.settings.resume)
        self.trained.settings.resume = "auto"
        self._train((0, 1), (NEW, 0), save=True)
        self._train((NEW, 0), (NEW, 1))
        self.session._save(LAST_STEP, NEW, 1)
        self.session.lock.close()
        self.before = self._copy("before")
        self._train((NEW, 1), (NEW, STEPS))
        self.write_checkpoints()
        self.session.lock.close()
        self.after = self._copy("after")
        self._train((NEW, STEPS), (NEW + 2, 0))
        self.end = self._state()
        self.go_back()

    def _train(self, position, end, save=False):
        """Train from one (epoch, batch) to another, which may be the end of an epoch."""
        epoch, batch = position
        while (epoch, batch) < end:
            if batch < STEPS:
                self.session.before_step(epoch, batch)
                self.trained.step()
                batch += 1
            if batch == STEPS and (epoch, batch) < end:
                if save:
                    self.session.after_epoch(epoch, {})
                epoch, batch = epoch + 1, 0

    def write_checkpoints(self):
        """What the trials disturb."""
        self.session.lock = folders.lock(self.output)
        self.session._save(LAST_STEP, NEW, STEPS)
        self.session.after_epoch(NEW, {})

    def _copy(self, name):
        return shutil.copytree(self.output, os.path.join(self.folder, name))

    def go_back(self):
        """Restore files and graph as they were before ``write_checkpoints``."""
        shutil.rmtree(self.output)
        shutil.copytree(self.before, self.output)
        shutil.copytree(os.path.join(self.after, str(NEW)), os.path.join(self.folder, "ready"), dirs_exist_ok=True)
        manifest = manifests.read(os.path.join(self.folder, "ready"))
        self.trained.graph.resume(os.path.join(self.folder, "ready"), manifest["schedule"])

    def _state(self):
        with tempfile.TemporaryDirectory() as folder:
            self.trained.graph.write(folder)
            return content(folder)

    def check(self, code):
        """Raise AssertionError unless every checkpoint is the old or the new one, and a resume finds the newest."""
        old = {name: content(os.path.join(self.before, name)) for name in ("0", "1", LAST_STEP)}
        new = {name: content(os.path.join(self.after, name)) for name in ("2",)}
        new[LAST_STEP] = new["2"]  # of the same step
        epochs = folders.saved_epochs(self.output)
        assert KEPT in epochs, f"epoch {KEPT} is lost"
        assert code != SAVED or NEW in epochs, "reported as saved, but missing"
        for name in [str(epoch) for epoch in epochs] + [LAST_STEP]:
            folder = os.path.join(self.output, name)
            if os.path.isdir(folder):
                weight_files.read_weights(folder)
                found = content(folder)
                assert found in (old.get(name), new.get(name)), f"{name} is neither the old nor the new checkpoint"
        folder, manifest = to_resume(self.session.settings)
        taken = manifest["epoch"], manifest["batch"]
        assert taken in ((NEW, 1), (NEW, STEPS), (NEW + 1, 0)), f"{folder} would be resumed from, at {taken}"
        assert NEW not in epochs or taken == (NEW + 1, 0), (
            f"{folder} would be resumed from, though it is not the newest"
        )

    def check_resume(self):
        """Raise AssertionError unless a resume ends in the uninterrupted run's bits."""
        self._train(self.session.first()[:2], (NEW + 2, 0))
        assert self._state() == self.end, "a resume ends in other bits"


def content(folder):
    """File -> bytes, without the manifest, which has the time."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir() if path.name != manifests.MANIFEST}


def trial(run, *options):
    """Write the checkpoints in a forked process, under strace with ``options``.

    Returns:
        (exit code, -9 if it was killed; its message; strace's log).
    """
    log, message = os.path.join(run.folder, "strace"), os.path.join(run.folder, "message")
    ready, go = os.pipe()
    child = os.fork()  # a fresh process would take seconds to import Paddle and build the network
    if child == 0:
        os.close(go)
        _child(run, ready, message)
    os.close(ready)
    paths = [part for path in _paths(run) for part in ("-P", path)]
    with open(os.path.join(run.folder, "strace's own"), "wb") as messages:
        tracer = subprocess.Popen(["strace", "-p", str(child), "-o", log, *options, *paths], stderr=messages)
        while not re.search(r"TracerPid:\s+[1-9]", pathlib.Path(f"/proc/{child}/status").read_text()):
            assert tracer.poll() is None, pathlib.Path(messages.name).read_text()
            time.sleep(0.002)
        os.write(go, b"x")
        os.close(go)
        _, status = os.waitpid(child, 0)
        tracer.wait(LEFT_S)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, pathlib.Path(message).read_text(), pathlib.Path(log).read_text()


def _child(run, ready, message):
    """Wait for the tracer, write the checkpoints, and leave the process at once."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LEFT_S)  # a hang is a failure
    code = FAILED
    file = os.open(message, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.read(ready, 1)
    try:
        run.write_checkpoints()
        code = SAVED
    except UserError as error:
        code = REFUSED
        os.write(file, str(error).encode())
    except BaseException:
        os.write(file, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _paths(run):
    """Every path that may be touched; strace takes no folders."""
    names = ["0", "1", "2", LAST_STEP]
    places = [form.format(name) for name in names for form in ("{}", ".{}.new", ".{}.old", ".{}.gone", "..{}.old.gone")]
    files = ["", *(os.sep + path.name for path in pathlib.Path(run.output, "1").iterdir())]
    found = [run.output, os.path.join(run.output, folders.LOCK)]
    return found + [os.path.join(run.output, folder) + file for folder in places for file in files]


def count_calls(run):
    """System call -> how often it is made on the output folder."""
    code, message, log = trial(
        run, "-e", "trace=" + ",".join("?" + name for name in [*ERRORS, "renameat", "renameat2"])
    )
    assert code == SAVED, message
    return collections.Counter(re.findall(r"^(\w+)\(", log, re.MULTILINE))


def faults(run, resume_every, every=1):
    """Disturb every call, or one in so many.

    Returns:
        (system call -> how often it is made, Counter of outcomes).
    Raises:
        AssertionError: a fault, which it names, did harm.
    """
    calls = count_calls(run)
    run.go_back()
    planned = [
        (name, fault, n)
        for name, number in sorted(calls.items())
        for fault in (f"error={ERRORS.get(name, 'EIO')}", "signal=KILL")
        for n in range(1, number + 1)
    ]
    outcomes = collections.Counter()
    for done, (name, fault, n) in enumerate(planned[::every]):
        code, message, log = trial(run, "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={n}")
        try:
            assert "INJECTED" in log or code == -9, "the fault did not happen"
            assert code in ((-9,) if "KILL" in fault else (SAVED, REFUSED)), message
            assert code != REFUSED or run.output in message, message
            run.check(code)
            if done % resume_every == 0:
                run.check_resume()
        except (AssertionError, UserError) as error:
            raise AssertionError(f"{fault} at {name} number {n} of {calls[name]}: {error}\n{log[-1500:]}") from error
        run.go_back()
        outcomes[{SAVED: "saved", REFUSED: "refused", -9: "killed"}[code]] += 1
    return calls, outcomes


def why_not():
    """Why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", str(LEFT_S)]) as sleeper, tempfile.TemporaryFile("w+") as message:
        tracer = subprocess.Popen(["strace", "-p", str(sleeper.pid), "-e", "inject=close:error=EIO"], stderr=message)
        traced = r"TracerPid:\s+[1-9]"
        while tracer.poll() is None and not re.search(traced, pathlib.Path(f"/proc/{sleeper.pid}/status").read_text()):
            time.sleep(0.01)
        may = tracer.poll() is None
        sleeper.kill()
        tracer.wait(LEFT_S)
        message.seek(0)
        return None if may else f"strace may not trace here: {message.read().strip()[-200:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--every", type=int, default=1, help="make one fault in so many")
    parser.add_argument("--resume-every", type=int, default=1, help="train on to the end after every so many faults")
    parser.add_argument("--graphs", nargs="*", choices=list(GRAPHS), default=list(GRAPHS))
    args = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"{reason}; this job needs it", file=sys.stderr)
        sys.exit(2)
    logging.disable(logging.CRITICAL)
    for name in args.graphs:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            calls, outcomes = faults(Run(name, os.path.realpath(folder)), args.resume_every, args.every)
        numbers = ", ".join(f"{number} {call}" for call, number in sorted(calls.items()))
        print(f"{name} graph: {sum(calls.values())} calls ({numbers}); {sum(outcomes.values())} faults: ", end="")
        print(", ".join(f"{n} {what}" for what, n in sorted(outcomes.items())), end="; nothing lost, ")
        print(f"in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
