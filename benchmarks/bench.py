"""The benchmarks, as ratios measured in one run: make bench, or python benchmarks/bench.py [TABLE ...]

Machine, versions and commit; the tables, each with its line of JSON; what was promised against what was
measured. Every variant's answers are checked against the dense mixture's before it is timed. The machine
should have nothing else to do.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time

import report
import tables
import workers
from stage import Stage


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(tables.TABLES)}; default: all")
    parser.add_argument("--torch-python", metavar="PATH", help="interpreter that has PyTorch, for its rows")
    parser.add_argument(
        "--paddlerec", metavar="FOLDER", help="of PaddleRec's DSelect-k: times its own training step, in table step"
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    args = parser.parse_args()
    unknown = set(args.tables) - set(tables.TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(sorted(unknown))}")
    for file in ("config.yaml", "dygraph_model.py"):
        if args.paddlerec and not os.path.isfile(os.path.join(args.paddlerec, file)):
            parser.error(f"--paddlerec {args.paddlerec}: there is no {file} in it")
    sizes = tables.SMALL if args.small else tables.FULL
    sizes = sizes._replace(torch=args.torch_python or None, paddlerec=args.paddlerec or None)
    run(args.tables or list(tables.TABLES), sizes)


def run(names, sizes):
    """Measure and print tables, then what was promised."""
    began, rows = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        show(report.machine_lines(machine(sizes, folder)))
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        table_began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, Stage(folder) as stage:
            table = tables.TABLES[name](sizes, stage)
        seconds = round(time.perf_counter() - table_began, 1)
        record = {"table": name, "title": table.title, "seconds": seconds, "difference": stage.greatest_difference}
        show(report.table_lines({**record, "rows": table.rows, "notes": table.notes}))
        rows[name] = table.rows
    show(report.acceptance_lines(rows, round(time.perf_counter() - began, 1)))


def show(lines):
    print("\n".join(lines), flush=True)


def machine(sizes, folder):
    """Machine, versions, commit, and how busy the machine is; and the sizes."""
    facts = {"cpu": _cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "commit": _commit()}
    facts["versions"] = _versions(workers.Settings(), folder)
    if sizes.torch:
        facts["of PyTorch's process"] = _versions(tables.torch_settings(sizes), folder)
    sizes = {name: value for name, value in sizes._asdict().items() if name not in ("torch", "paddlerec")}
    return {"machine": facts, "sizes": sizes}


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=tables.ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/RESULTS*")
    return git("rev-parse", "--short", "HEAD") + (", changed" if changed else "")


def _versions(settings, folder):
    try:
        with workers.Worker(settings, folder) as worker:
            return worker.ask("facts")["versions"]
    except workers.Absent as why:
        return str(why)


if __name__ == "__main__":
    main()
