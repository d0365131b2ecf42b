"""The command line of the benchmarks: make bench, or python benchmarks/bench.py [TABLE ...]

Prints the machine, the tables, and what is promised against what was measured; below each, the line of JSON it is made
from. Every variant's answers are checked against the dense mixture's before it is timed. Run it on an idle machine.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time

import machine_facts
import report
import tables
from stage import Stage
from worker import Settings, Worker


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(tables.TABLES)}; default: all but profile"
    )
    parser.add_argument("--torch-python", metavar="PATH", help="an interpreter with PyTorch, for its rows")
    parser.add_argument(
        "--paddlerec", metavar="FOLDER", help="PaddleRec's DSelect-k, whose own training step joins the table step"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, in one process: tests the benchmarks, measures nothing"
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
    plan = tables.SMALL if args.small else tables.Plan()
    plan = dataclasses.replace(plan, torch=args.torch_python or None, paddlerec=args.paddlerec or None)
    names = args.tables or tables.BY_DEFAULT
    if not args.small:
        return run(names, plan)
    with tempfile.TemporaryDirectory() as folder, Worker(Settings(), folder) as one_process:
        one_process.ask("build_faster")
        run(names, plan, one_process)


def run(names, plan, one_process=None):
    """Measure and print tables, then the acceptance table.

    Args:
        one_process: see ``Stage``.
    """
    began, rows = time.perf_counter(), {}
    facts = machine(plan)
    show(report.machine_lines(facts))
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        table_began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, Stage(folder, one_process) as stage:
            table = tables.TABLES[name](plan, stage)
        seconds = round(time.perf_counter() - table_began, 1)
        record = {"table": name, "title": table.title, "seconds": seconds, "difference": stage.greatest_difference}
        record.update(examples=table.examples or plan.batch, commit=facts["machine"]["commit"])
        show(report.table_lines({**record, "rows": table.rows, "notes": list(table.notes)}))
        rows[name] = table.rows
    show(report.acceptance_lines(rows, round(time.perf_counter() - began, 1)))


def show(lines):
    print("\n".join(lines), flush=True)


def machine(plan):
    """The machine, its load, versions and commit; and the plan's sizes."""
    facts = {**machine_facts.machine(), "commit": machine_facts.commit(except_for="benchmarks/RESULTS*")}
    facts["versions"] = _versions(Settings())
    if plan.torch:
        facts["of PyTorch's process"] = _versions(tables.torch_settings(plan))
    sizes = {name: value for name, value in dataclasses.asdict(plan).items() if name not in ("torch", "paddlerec")}
    return {"machine": facts, "sizes": sizes}


def _versions(settings):
    with tempfile.TemporaryDirectory() as folder, Worker(settings, folder) as worker:
        return worker.ask("facts")["versions"]


if __name__ == "__main__":
    main()
