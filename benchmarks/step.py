"""What a training step costs with 8, 4, 2 and 1 active experts, in each graph: python benchmarks/step.py

Noise of the real size (36 x 36, batch 256) stands in for images: the work does not depend on them.
Variants take turns, one step each, in one process; medians are compared. Before that, each variant's
predictions are checked against the dense mixture's.
"""

import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import paddle

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import oracles  # noqa: E402  (the tests' oracles and ways of running, found by the line above)
from ways import code_logits, config, gate_values, make_batches, start  # noqa: E402

import net  # noqa: E402

BATCH, WARM_UP, ROUNDS = 256, 2, 12
# active experts -> the two experts that each task's gate has settled on; None: unsettled, all 8 in use
ACTIVE = {8: None, 4: ([0, 1], [2, 3]), 2: ([0, 1], [0, 1]), 1: ([0, 0], [0, 0])}


def environment():
    """One line about the machine and the versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return (
        f"{cpu}, {paddle.get_flags('FLAGS_paddle_num_threads')['FLAGS_paddle_num_threads']} Paddle thread, "
        f"paddlepaddle {paddle.__version__}, numpy {np.__version__}, Python {platform.python_version()}, "
        f"commit {commit.stdout.strip()}, batch {BATCH}"
    )


def settled_run(way, codes):
    run = start(way, config(expert_num=8, top_k=2))
    if codes is not None:
        values = {}
        for task, chosen in enumerate(codes):
            both = gate_values(run, code_logits(chosen, 3, 0.8))
            name = run.names[f"gates.{task}.selector_logits"]
            values[name] = both[name]
        run.set(values)
    return run


def check_against_dense(run, batch):
    """The greatest difference of a prediction from the dense mixture's, at the same weights."""
    with mock.patch.object(net, "run_needed_experts", oracles.run_all_experts):
        dense = start("eager", run.flat)
        dense.set(run.state())
        expected = dense.evaluate(batch)[2]
    return max(float(np.abs(a - b).max()) for a, b in zip(run.evaluate(batch)[2], expected))


def main():
    print(environment())
    batch = make_batches(np.random.RandomState(0), 1, size=BATCH)[0]
    runs = {(way, n): settled_run(way, codes) for way in ("eager", "static") for n, codes in ACTIVE.items()}
    difference = max(check_against_dense(run, batch) for run in runs.values())
    print(f"greatest difference from the dense mixture: {difference:.1e}")
    assert difference < 1e-4, "the variants do not compute the same"
    times = {key: [] for key in runs}
    for i in range(WARM_UP + ROUNDS):
        for key, run in runs.items():
            began = time.perf_counter()
            _, used = run.step(batch)
            if i >= WARM_UP:
                times[key].append(time.perf_counter() - began)
            assert used == key[1], f"{key}: {used} experts were in use"
    report(times, difference)


def report(times, difference):
    rows = []
    print(f"{'graph':8}{'active':>7}{'ms a step':>11}{'examples/s':>12}{'against 8':>11}   quartiles of ms")
    for (way, active), values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(times[way, 8]) / median
        low, _, high = statistics.quantiles(values, n=4)
        print(
            f"{way:8}{active:7}{median * 1e3:11.1f}{BATCH / median:12.0f}{ratio:10.2f}x   "
            f"{low * 1e3:.1f} to {high * 1e3:.1f}"
        )
        rows.append({"graph": way, "active": active, "ms": round(median * 1e3, 2), "against_8": round(ratio, 3)})
    print(json.dumps({"benchmark": "step", "batch": BATCH, "difference": difference, "rows": rows}))


if __name__ == "__main__":
    main()
