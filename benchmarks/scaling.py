"""Training by 1, 2 and 4 processes of one machine: examples a second, and bytes a step, in both graphs.

    python benchmarks/scaling.py            # some ten minutes; the machine idle

All runs have the same batch, which the processes share out. ``dense``: gates in their first steps, all experts in use.
``settled``: fixed gates, one expert for each task. ``local``: batch norm over each process's rows.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("", "tools", "scripts")]

import machine_facts  # noqa: E402  (found by the line above)

from support import several  # noqa: E402  (likewise)

IMAGES, TABLE = ROOT / "config.yaml", ROOT / "examples" / "census" / "config.yaml"
COMMON = [
    "runner.epochs=3", "runner.train_batch_size=256", "runner.print_interval=5", "runner.progress=false",
    "hyper_parameters.optimizer.schedule=constant", "runner.resume=off",
]  # fmt: skip
GATES = {"dense": ["gate=dselect_k", "entropy_weight=0"], "settled": ["gate=random", "top_k=1"]}
CASES = {
    "images, batch norm": (IMAGES, []),
    "images, local": (IMAGES, ["sync_batch_norm=false"]),
    "images, group norm": (IMAGES, ["expert_norm=group"]),
    "table, n = 64": (TABLE, ["expert_num=64"]),
}
SKIPPED = 2  # intervals at the beginning: compiling, warming up


def measure(number, tool, config, hyper, folder):
    """(examples a second, kilobytes that a process gives for a reduction, experts in use)."""
    log = folder / f"{number}.json"
    log.unlink(missing_ok=True)
    keys = [*COMMON, *(f"hyper_parameters.{key}" for key in hyper), f"runner.log_json={log}"]
    arguments = ["-m", config, "-o", *keys, f"runner.model_save_path={folder / 'saved'}"]
    codes, logs = several.run(number, [(tool, arguments)], folder)
    if codes != [0] * number:
        raise SystemExit("\n".join(logs))
    found = [r for r in map(json.loads, log.read_text().splitlines()) if r["event"] == "interval"][SKIPPED:]
    speed = statistics.median(record["examples_per_s"] for record in found)
    return speed, found[-1].get("sent_bytes", 0) / 1e3, found[-1]["numbers"]["experts_used"]


def arguments(description, cases):
    """What the command line asks for, ``cases`` and ``processes``; prints the machine."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="*", default=list(cases), choices=list(cases))
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    args = parser.parse_args()
    facts = machine_facts.machine()
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}, commit {machine_facts.commit('docs')}")
    return args


def main():
    args = arguments(__doc__, CASES)
    print(f"{'case':20s} {'graph':8s} {'gates':8s} {'used':>4s}  " + "  ".join(f"{n:>20d}" for n in args.processes))
    for case in args.cases:
        config, keys = CASES[case]
        for graph, tool in (("dynamic", "trainer"), ("static", "static_trainer")):
            for gates, of_gates in GATES.items():
                with tempfile.TemporaryDirectory() as folder:
                    found = [measure(n, tool, config, [*keys, *of_gates], pathlib.Path(folder)) for n in args.processes]
                row = "  ".join(f"{speed:9.0f}/s {sent:6.0f} KB" for speed, sent, _ in found)
                print(f"{case:20s} {graph:8s} {gates:8s} {found[0][2]:4.0f}  {row}", flush=True)


if __name__ == "__main__":
    main()
