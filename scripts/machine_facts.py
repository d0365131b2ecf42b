"""What a measurement was made on: the machine, its load, the libraries and the commit. As a script, prints versions."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def machine():
    """The processor, the number of cores, and the load of the last minute (None where it is not reported)."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "load": load}


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def commit(*except_for):
    """The short id of the commit that is checked out, followed by ", changed" if files differ from it.

    Args:
        except_for: patterns of files that may differ: those that the measurement itself writes.
    """

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", *(f":!{pattern}" for pattern in except_for))
    return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")


def measured_on(*except_for):
    """What a line of results says of these two; ``except_for`` as for ``commit``."""
    return {"machine": machine(), "commit": commit(*except_for)}


def versions(*libraries):
    """Versions of Python and of those libraries that are installed."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(versions("numpy", "paddlepaddle", "torch", "torch-rechub", "deepctr-torch")))
