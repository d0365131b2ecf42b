"""The command to type next: as it must be typed in the folder the tool was started in."""

import os
import shlex
import shutil
import subprocess
import sys

from engine.keys import RUNNER_KEYS

TOOLS = {
    ("dynamic", "train"): "trainer", ("static", "train"): "static_trainer", ("dynamic", "infer"): "infer",
    ("static", "infer"): "static_infer", ("static", "export"): "export", ("exported", "infer"): "predict",
}  # fmt: skip


class Commands:
    """Command lines that go on from a tool's own.

    Args:
        graph_name, job: of the tool; see ``jobs.run``.
        path: of the YAML file, as it was given.
        overrides: texts KEY=VALUE, as they were given.
    """

    def __init__(self, graph_name, job, path, overrides):
        self.tool, self.path = TOOLS[graph_name, job], path
        self.given = dict(text.split("=", 1) for text in overrides)

    def again(self, **changes):
        """The same tool's, with ``runner.*`` keys changed."""
        return self._line(self.tool, self.given, changes)

    def of(self, tool, **changes):
        """Another tool's, which does not train: with the overrides that may matter to it, and changes to them."""
        of_training = {f"runner.{name}" for name, key in RUNNER_KEYS.items() if key.job == "train"}
        kept = {key: value for key, value in self.given.items() if key not in of_training}
        return self._line(tool, kept, changes)

    def _line(self, tool, given, changes):
        script = os.path.join(os.path.dirname(sys.argv[0]), f"{tool}.py")
        overrides = {**given, **{f"runner.{name}": value for name, value in changes.items()}}
        words = [_python(), script, "-m", self.path]
        words += ["-o"] * bool(overrides) + [f"{key}={value}" for key, value in overrides.items()]
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _python():
    """What starts this interpreter: python, if that is it."""
    for name in ("python", "python3"):
        if _same_path(shutil.which(name) or "", sys.executable):
            return name
    here = os.path.join(os.getcwd(), "")
    return os.path.join(os.curdir, sys.executable[len(here) :]) if sys.executable.startswith(here) else sys.executable


def _same_path(one, other):
    return os.path.normcase(os.path.abspath(one)) == os.path.normcase(os.path.abspath(other))
