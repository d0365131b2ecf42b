"""What a measured figure was measured on: the machine, its load, and the project's commit."""

import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def machine():
    """The processor, its cores, and the load of the last minute (None where the system does not tell it)."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "load": load}


def commit(except_for):
    """The short id of the commit checked out, and whether files differ from it.

    Args:
        except_for: pattern of files that may differ: those which the measuring itself writes.
    """

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", f":!{except_for}")
    return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
