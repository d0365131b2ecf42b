"""The benchmarks, as ratios measured in one run: make bench, or python benchmarks/bench.py [TABLE ...]

Machine, versions and commit; the tables, each with one line of JSON; what was promised against what was
measured. Every variant's answers are checked against the dense mixture's before it is timed. The machine
should have nothing else to do.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import acceptance
import figures
import tables
import workers
from stage import Stage


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(tables.TABLES)}; default: all")
    parser.add_argument("--torch-python", metavar="PATH", help="interpreter that has PyTorch, for its rows")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    args = parser.parse_args()
    unknown = set(args.tables) - set(tables.TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(sorted(unknown))}")
    run(args.tables or list(tables.TABLES), plan(args.small, args.torch_python))


def plan(small, torch_python):
    """The sizes of a run; PyTorch has two threads, as installed."""
    sizes = tables.SMALL if small else tables.FULL
    torch = workers.Settings(tuned=(), threads=2, python=torch_python) if torch_python else None
    return sizes._replace(torch=torch)


def run(names, sizes):
    """Measure and print tables, then what was promised."""
    began, measured = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        print_machine(sizes, folder)
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        table_began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, Stage(folder) as stage:
            table = tables.TABLES[name](sizes, stage)
        measured.update(table.figures)
        seconds = time.perf_counter() - table_began
        print_table(name, table, stage.greatest_difference, seconds)
    promised = acceptance.rows(measured)
    print_rows(promised)
    print(json.dumps({"table": "acceptance", "rows": promised}))
    print(f"{time.perf_counter() - began:.0f} s in all")


def print_machine(sizes, folder):
    """Machine, versions, commit, and how busy the machine is."""
    machine = {"cpu": _cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "commit": _commit()}
    machine["versions"] = _versions(workers.Settings(), folder)
    if sizes.torch:
        machine["of PyTorch's process"] = _versions(sizes.torch, folder)
    print(json.dumps({"machine": machine, "sizes": sizes._replace(torch=None)._asdict()}))


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=tables.ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (", changed" if git("status", "--porcelain") else "")


def _versions(settings, folder):
    try:
        with workers.Worker(settings, folder) as worker:
            return worker.ask("facts")["versions"]
    except workers.Absent as why:
        return str(why)


def print_table(name, table, difference, seconds):
    """A table for readers, then as one line of JSON."""
    print(f"\n{table.title}  [{name}, {seconds:.0f} s]")
    print_rows(table.rows)
    if difference is not None:
        print(f"greatest difference of a prediction from the dense mixture's: {difference:.1e}")
    for note in table.notes:
        print(note)
    record = {"table": name, "title": table.title, "difference": difference, "rows": table.rows, "notes": table.notes}
    print(json.dumps({**record, "seconds": round(seconds, 1)}, default=float), flush=True)


def print_rows(rows):
    """Align rows in columns, in the order in which the columns first occur."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _text(value):
    if isinstance(value, figures.Spread):
        return f"{value.median:.3g} ({value.low:.3g} to {value.high:.3g})"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "not measured" if value is None else str(value)


if __name__ == "__main__":
    main()
