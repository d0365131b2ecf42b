"""Kill trainings at random moments, and resume: python tests/stress/kill_resume.py --trials 100

Each trial kills a training (SIGKILL), of either graph by turns, at a random moment, starts it again
with runner.resume=auto, and so on until it ends. Its last epoch must have the same bits, weights and
optimizer state, as an undisturbed run's. tests/test_resume.py runs a few trials.
"""

import argparse
import os
import pathlib
import pickle
import random
import subprocess
import tempfile
import time

import numpy as np
import processes

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
EPOCHS = 2
TOOLS = {"dynamic": "trainer", "static": "static_trainer"}
OVERRIDES = [
    f"runner.epochs={EPOCHS}", "runner.train_batch_size=16", "runner.print_interval=1", "runner.save_interval_steps=2",
    "hyper_parameters.expert_num=4", "hyper_parameters.expert_size=8", "hyper_parameters.entropy_schedule=linear",
    "hyper_parameters.entropy_ramp_steps=8", "runner.to_static=false",
]  # fmt: skip


def make_data(folder, example_num=100, part="train"):
    """A small folder of data, of a part of the committed sample; gives the override that points at it."""
    images, labels = pickle.loads((ROOT / "data" / part / f"{part}.pickle").read_bytes())
    os.makedirs(folder)
    with open(os.path.join(folder, "part.pickle"), "wb") as file:
        pickle.dump((images[:example_num], labels[:example_num]), file)
    return f"runner.{part}_data_dir={folder}"


def start(graph, cwd, *overrides, new_group=False):
    """A training under way, its log going to ``cwd``/log."""
    arguments = ["-m", ROOT / "config.yaml", "-o", *OVERRIDES, *overrides]
    log = pathlib.Path(cwd, "log")
    log.touch()
    return processes.start(TOOLS[graph], arguments, cwd, log, log, new_group)


def state(cwd, epoch=EPOCHS - 1):
    """All that an epoch folder says of the future: file -> name -> array or number."""
    folder = pathlib.Path(cwd) / "output" / str(epoch)
    return {
        path.name: pickle.loads(path.read_bytes())
        for path in folder.iterdir()
        if path.suffix in (".pdparams", ".pdopt")
    }


def differences(ours, theirs):
    """Names in which two states differ, in any bit."""
    wrong = [] if ours.keys() == theirs.keys() else ["files"]
    for file in ours.keys() & theirs.keys():
        if ours[file].keys() != theirs[file].keys():
            wrong.append(f"{file}: names")
            continue
        for name, value in ours[file].items():
            same = value == theirs[file][name]
            if isinstance(value, np.ndarray):
                same = value.dtype == theirs[file][name].dtype and value.tobytes() == theirs[file][name].tobytes()
            if not same:
                wrong.append(f"{file}: {name}")
    return wrong


def run_through(graph, cwd, data, rng=None, duration_s=0.0):
    """Train to the end; with ``rng``, killed at random moments on the way. Gives the number of kills."""
    os.makedirs(cwd)
    kills = 0
    while True:
        process = start(graph, cwd, data, "runner.resume=auto")
        # the first kill anywhere in the run; then less and less likely, so that it ends
        if rng is not None and (kills == 0 or rng.random() < 0.4):
            try:
                process.wait(rng.uniform(0.5, duration_s))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
        if process.wait() == 0:
            return kills
        if process.returncode != -9:
            raise AssertionError(f"exit code {process.returncode}:\n" + pathlib.Path(cwd, "log").read_text()[-3000:])


def trials(number, seed, folder):
    """Run trials; raise AssertionError at the first that ends in other bits. Gives the number of kills."""
    rng = random.Random(seed)
    data = make_data(os.path.join(folder, "data"))
    expected, duration_s = {}, {}
    for graph in TOOLS:
        began = time.perf_counter()
        run_through(graph, os.path.join(folder, graph), data)
        duration_s[graph] = time.perf_counter() - began
        expected[graph] = state(os.path.join(folder, graph))
    kills = 0
    for trial in range(number):
        graph = list(TOOLS)[trial % 2]
        cwd = os.path.join(folder, f"trial{trial}")
        kills += run_through(graph, cwd, data, rng, duration_s[graph])
        wrong = differences(state(cwd), expected[graph])
        assert not wrong, f"trial {trial}, {graph} graph, in {cwd}: other bits in {wrong[:5]}"
    return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = trials(args.trials, args.seed, folder)
    told = "all ended in the bits of the undisturbed run" if kills else "no kill came in time, and nothing was tested"
    print(f"trials: {args.trials}, kills: {kills}; {told}")


if __name__ == "__main__":
    main()
