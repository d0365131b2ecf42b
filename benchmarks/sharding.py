"""What processes of one machine gain by sharing out experts, or the rows of embeddings, instead of holding all of them.

    python benchmarks/sharding.py           # a quarter of an hour; the machine idle

The tools train random rows (benchmarks/rows), two tasks, in batches of 256 whatever the number of processes. By number
of processes it prints examples a second, megabytes that each process sends a step (as the loopback device counts them),
and megabytes of memory that each takes while it trains (resident, the median).

Experts: 64, and a gate for each example: ``dense``, DSelect-k's in its first steps, where each example needs all
experts; ``sparse``, top-k with one expert for each task. Wide experts have 1024 and 256 units instead of 64 and 50.
Embeddings: a table of ten million rows of 8, by lazy_adam in the dynamic graph, by adam in the static one.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("", "tools", "scripts")]

import scaling  # noqa: E402  (beside this file; the path is set above for what it imports)

from support import several  # noqa: E402  (likewise)

CONFIG = ROOT / "benchmarks" / "rows" / "config.yaml"
GATES = {"dense": ["gate=dselect_k_per_example", "entropy_weight=0"], "sparse": ["gate=top_k", "top_k=1"]}
WIDE = ["expert_hidden_sizes=[1024]", "expert_size=256"]
MANY_IDS = [
    "gate=random", "top_k=1", "expert_num=4",
    "input.vocabulary_sizes=[3000000, 3000000, 2000000, 1000000, 1000000]",
]  # fmt: skip
BOTH = ("trainer", "static_trainer")
CASES = {  # name -> (tools, keys, the key that shares out)
    **{f"experts, {gates}": (BOTH, of_gates, "shard_experts") for gates, of_gates in GATES.items()},
    "wide experts, sparse": (BOTH, [*GATES["sparse"], *WIDE], "shard_experts"),
    "embeddings, adam": (("static_trainer",), MANY_IDS, "input.shard_embedding"),
    "embeddings, lazy_adam": (("trainer",), [*MANY_IDS, "optimizer.class=lazy_adam"], "input.shard_embedding"),
}
SKIPPED, WANTED = 2, 10  # intervals: at the beginning, and those that are measured


class Sampled:
    """What is measured of a job under way."""

    def __init__(self, job, log):
        self.job, self.log = job, log
        self.intervals, self.sent, self.memory = [], [], []  # by interval; memory by look

    def follow(self):
        """Look until there are enough intervals, or the job ends."""
        while len(self.intervals) < SKIPPED + WANTED and all(process.is_alive() for process in self.job.processes):
            self._look()
            time.sleep(0.02)

    def _look(self):
        found = self.log.read_text().splitlines() if self.log.exists() else []
        found = [json.loads(line) for line in found if line.endswith("}")]
        found = [record for record in found if record["event"] == "interval"]
        if len(found) > len(self.intervals):
            self.intervals = found
            self.sent.append((len(found), _sent_bytes()))
        if len(found) > SKIPPED:
            self.memory.append([_resident_bytes(process.pid) for process in self.job.processes])

    def result(self, processes):
        """(examples a second, megabytes sent by a process in a step, megabytes of a process's memory)."""
        if len(self.intervals) < SKIPPED + WANTED:
            raise SystemExit("\n".join(log.read_text() for log in self.job.logs))
        measured = self.intervals[SKIPPED:]
        seen = [(number, sent) for number, sent in self.sent if number > SKIPPED]
        steps = (seen[-1][0] - seen[0][0]) * (measured[1]["batch"] - measured[0]["batch"])
        sent = (seen[-1][1] - seen[0][1]) / steps / processes
        memory = max(statistics.median(of_one) for of_one in zip(*self.memory))
        return statistics.median(record["examples_per_s"] for record in measured), sent / 1e6, memory / 1e6


def _sent_bytes():
    """What has been sent through the loopback device, by any process of the machine."""
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def _resident_bytes(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def measure(number, tool, hyper, folder):
    """See ``Sampled.result``."""
    log = folder / "log.json"
    log.unlink(missing_ok=True)
    keys = [*(f"hyper_parameters.{key}" for key in hyper), f"runner.log_json={log}", "runner.progress=false"]
    job = several.Job(
        number, [(tool, ["-m", CONFIG, "-o", *keys, f"runner.model_save_path={folder / 'saved'}"])], folder
    )
    sampled = Sampled(job, log)
    sampled.follow()
    for process in job.processes:
        process.kill()
    job.wait()
    return sampled.result(number)


def main():
    args = scaling.arguments(__doc__, CASES)
    print(f"{'case':22s} {'graph':8s} {'each holds':10s} " + " ".join(f"{n:>26d}" for n in args.processes))
    for case in args.cases:
        tools, keys, sharing = CASES[case]
        for tool in tools:
            graph = "static" if tool.startswith("static") else "dynamic"
            for shared in (False, True):
                row = []
                for number in args.processes:
                    if shared and number == 1:
                        row.append("")
                        continue
                    with tempfile.TemporaryDirectory() as folder:
                        found = measure(number, tool, [*keys, f"{sharing}={shared}"], pathlib.Path(folder))
                    row.append(f"{found[0]:7.0f}/s {found[1]:6.2f} {found[2]:6.0f} MB")
                print(
                    f"{case:22s} {graph:8s} {'a share' if shared else 'all':10s} " + " ".join(f"{x:>26s}" for x in row),
                    flush=True,
                )


if __name__ == "__main__":
    main()
