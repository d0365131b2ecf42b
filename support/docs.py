"""Reads the docs' pages: the files, commands and programs that they show, and runs these as a reader would."""

import csv
import re
import shlex
import subprocess
import sys

from support import ROOT
from support.toolbox import run_here

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(name):
    """The text of a page, by its path from the project's folder."""
    return (ROOT / name).read_text(encoding="utf-8")


def section(page, title):
    """The text under a heading, up to the next one of the same level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL).group(1)


def files_in(text):
    """The files that a page, or a section of it, shows: name -> content."""
    return dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def commands_in(text):
    """The commands in its blocks ``console``, in order."""
    return "".join(re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()


def indented_commands_in(text):
    """The commands in its indented blocks, in order, without their comments."""
    return re.findall(r"^    ((?:make|python|pip) .*?)(?:  +#.*)?$", FENCED.sub("", text), re.MULTILINE)


def programs_in(text):
    """Its Python programs."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(command, folder, as_process=()):
    """What a command prints, which must succeed.

    Args:
        command: ``python SCRIPT ...``; a tool runs within this process, which is faster.
        folder: to run it in; the script is there too.
        as_process: names of tools to run as processes.
    """
    program, script, *arguments = shlex.split(command)
    assert program == "python"
    tool = script[len("tools/") : -len(".py")]
    if tool in as_process or not script.startswith("tools/"):
        process = subprocess.run([sys.executable, script, *arguments], cwd=folder, capture_output=True, text=True)
    else:
        assert arguments[0] == "-m" and arguments[2:3] in ([], ["-o"])
        process = run_here(tool, folder / arguments[1], *arguments[3:], cwd=folder)
    assert process.returncode == 0, f"{command}\n{process.stderr}"
    return process.stdout + process.stderr


def table(path):
    """The rows of a CSV file, each a dict."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def program_of_ones_own():
    """The guide's program of a network of your own, as written."""
    (program,) = programs_in(section(read("docs/guide.md"), "A network of your own"))
    return program


def assert_trained(process):
    """That program, run, has printed a low loss and skipped experts in each graph."""
    assert process.returncode == 0, process.stderr
    found = re.findall(r"^(dynamic|static): loss (\S+), (\d+) of 8 experts$", process.stdout, re.MULTILINE)
    assert [graph for graph, *_ in found] == ["dynamic", "static"], process.stdout
    for _, loss, used in found:
        assert float(loss) < 0.3 and 1 <= int(used) <= 4  # from about 4, and 8 experts
