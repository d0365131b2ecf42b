"""The command line of the benchmarks: make bench, or python benchmarks/bench.py [TABLE ...]

Prints the machine, the tables, and what is promised against what was measured; below each, the line of JSON it is made
from. Every variant's answers are checked against the dense network's before it is timed. Run it on an idle machine.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "scripts"), str(ROOT / "examples" / "census")]

import machine_facts  # noqa: E402  (the path is set above)
import report  # noqa: E402
import tables  # noqa: E402
from measuring import Bench  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(tables.TABLES)}; default: all")
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter with PyTorch, for its rows")
    parser.add_argument(
        "--paddlerec", metavar="FOLDER", help="PaddleRec's DSelect-k, whose own training step joins the table step"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, mostly in one process: tests the benchmarks, measures nothing"
    )
    args = parser.parse_args()
    unknown = set(args.tables) - set(tables.TABLES)
    if unknown:
        parser.error(f"there is no table {', '.join(sorted(unknown))}")
    if args.torch_python and shutil.which(args.torch_python) is None:
        parser.error(f"--torch-python {args.torch_python}: there is no such program")
    for file in ("config.yaml", "dygraph_model.py"):
        if args.paddlerec and not os.path.isfile(os.path.join(args.paddlerec, file)):
            parser.error(f"--paddlerec {args.paddlerec}: there is no {file} in it")
    folder = os.path.abspath(args.paddlerec) if args.paddlerec else None
    sizes = tables.SMALL if args.small else tables.FULL
    sizes = sizes._replace(torch=args.torch_python or None, paddlerec=folder)
    run(args.tables or tables.TABLES, sizes, in_process=args.small)


def run(names, sizes, in_process):
    """Measure and print tables, then the promises."""
    began, rows = time.perf_counter(), {}
    facts = machine(sizes)
    show(report.machine_lines(facts))
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        table, table_began = tables.TABLES[name], time.perf_counter()
        own = table.sizes(sizes)
        with tempfile.TemporaryDirectory() as folder, Bench(own, folder, in_process) as bench:
            rows[name], notes = table.measure(bench)
        seconds = round(time.perf_counter() - table_began, 1)
        record = {"table": name, "title": table.title.format(**own._asdict()), "seconds": seconds}
        record.update(difference=bench.difference, examples=own.batch, commit=facts["machine"]["commit"])
        show(report.table_lines({**record, "rows": rows[name], "notes": notes}))
    show(report.acceptance_lines(rows, round(time.perf_counter() - began, 1)))


def show(lines):
    print("\n".join(lines), flush=True)


def machine(sizes):
    """The machine, its load, versions and commit; and the sizes."""
    facts = {**machine_facts.machine(), "commit": machine_facts.commit("benchmarks/RESULTS*")}
    facts["versions"] = machine_facts.versions("numpy", "paddlepaddle")
    if sizes.torch:
        command = [sizes.torch, machine_facts.__file__]
        facts["of PyTorch's process"] = json.loads(subprocess.check_output(command, text=True))
    return {"machine": facts, "sizes": {k: v for k, v in sizes._asdict().items() if k not in ("torch", "paddlerec")}}


if __name__ == "__main__":
    main()
