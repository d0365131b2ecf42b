"""Kill one of two processes at random moments, again and again, and resume; the end is that of an undisturbed job.

python tests/stress/kill_one_of_several.py --kills 50
"""

import argparse
import pathlib
import random
import signal
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import paddle  # noqa: E402

from support import several  # noqa: E402

PACKAGE = ROOT / "tests" / "several" / "config.yaml"
KEYS = ["runner.save_interval_steps=10", "hyper_parameters.expert_dropout=0.2", "runner.resume=auto"]
SHARED_OUT = [
    "hyper_parameters.gate=dselect_k_per_example", "hyper_parameters.shard_experts=true",
    "hyper_parameters.input.shard_embedding=true",
]  # fmt: skip
JOBS = [(tool, extra) for extra in (SHARED_OUT, []) for tool in ("trainer", "static_trainer")]
LONGEST = 75.0  # seconds until the other process has ended; while Paddle connects them, it takes up to 62


def command(tool, extra, epochs, folder):
    keys = [*KEYS, *extra, f"runner.epochs={epochs}", f"runner.model_save_path={folder}"]
    return [(tool, ["-m", PACKAGE, "-o", *keys])]


def killed(tool, extra, epochs, folder, rng):
    """One job that may be killed: (exit codes, whether it was, seconds that the other process went on)."""
    job = several.Job(2, command(tool, extra, epochs, "killed"), folder)
    rank, until = rng.randrange(2), time.monotonic() + rng.uniform(3.0, 12.0)
    while time.monotonic() < until and all(process.is_alive() for process in job.processes):
        time.sleep(0.01)
    is_killed = all(process.is_alive() for process in job.processes)
    if is_killed:
        job.signal(rank, signal.SIGKILL)
    began = time.monotonic()
    codes, logs = job.wait()
    for log in job.logs:
        log.unlink()
    was_connecting = "have not been connected within" in logs[1 - rank]  # which only SIGKILL can end
    # Paddle's own threads may abort the process first
    if is_killed and codes[1 - rank] not in (0, 75, -6) and not (was_connecting and codes[1 - rank] == -9):
        raise SystemExit(f"exit codes {codes}\n" + "\n".join(logs))
    if not is_killed and codes != [0, 0]:
        raise SystemExit(f"exit codes {codes}\n" + "\n".join(logs))
    return codes, is_killed, time.monotonic() - began


def weights(folder, epochs):
    path = next((folder / str(epochs - 1)).glob("*.pdparams"))
    return {name: np.asarray(value) for name, value in paddle.load(str(path)).items() if hasattr(value, "shape")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, jobs, kills, slowest, aborted = random.Random(args.seed), 0, 0, 0.0, 0
    while kills < args.kills or jobs < len(JOBS):
        tool, extra = JOBS[jobs % len(JOBS)]
        jobs += 1
        with tempfile.TemporaryDirectory() as folder:
            folder, is_done = pathlib.Path(folder), False
            epochs = args.epochs
            codes, logs = several.run(2, command(tool, extra, epochs, "whole"), folder)
            if codes != [0, 0]:
                raise SystemExit("\n".join(logs))
            while not is_done:
                codes, was_killed, seconds = killed(tool, extra, epochs, folder, rng)
                kills, is_done = kills + was_killed, codes == [0, 0]
                slowest, aborted = max(slowest, seconds if was_killed else 0.0), aborted + (-6 in codes)
            whole, resumed = weights(folder / "whole", epochs), weights(folder / "killed", epochs)
            if any(not np.array_equal(whole[name], resumed[name]) for name in whole):
                raise SystemExit(f"{tool}: after {kills} kills the weights are not those of an undisturbed job")
        what = f"{tool}, {'experts and embeddings shared out' if extra else 'whole network'}"
        print(f"{kills} kills, {what}: the same weights; the other process ended within {slowest:.1f} s", flush=True)
    if slowest > LONGEST:
        raise SystemExit(f"a process went on for {slowest:.1f} s after the other was killed")
    print(f"{kills} kills: all weights the same; {aborted} times Paddle aborted the other process")


if __name__ == "__main__":
    main()
