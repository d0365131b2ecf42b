"""Small runs that are killed, resumed and compared bit by bit."""

import os
import pathlib
import pickle
import random
import subprocess
import time

import numpy as np

from support import ROOT, processes

EPOCHS = 2
TOOLS = {"dynamic": "trainer", "static": "static_trainer"}
OVERRIDES = [
    f"runner.epochs={EPOCHS}", "runner.train_batch_size=16", "runner.print_interval=1", "runner.save_interval_steps=2",
    "hyper_parameters.expert_num=2", "hyper_parameters.expert_size=8", "hyper_parameters.entropy_schedule=linear",
    "hyper_parameters.entropy_ramp_steps=8", "runner.to_static=false",
]  # fmt: skip
CONSTANT = "hyper_parameters.optimizer.schedule=constant"  # a one-cycle schedule depends on the number of epochs


def make_data(folder, example_num=100, part="train"):
    """Write a small part of the committed sample to ``folder``. Returns the override that points to it."""
    images, labels = pickle.loads((ROOT / "data" / part / f"{part}.pickle").read_bytes())
    os.makedirs(folder)
    with open(os.path.join(folder, "part.pickle"), "wb") as file:
        pickle.dump((images[:example_num], labels[:example_num]), file)
    return f"runner.{part}_data_dir={folder}"


def start(graph, cwd, *overrides, new_group=False):
    """Start a training process; it logs to ``cwd``/log."""
    arguments = ["-m", ROOT / "config.yaml", "-o", *OVERRIDES, *overrides]
    log = pathlib.Path(cwd, "log")
    log.touch()
    return processes.start(TOOLS[graph], arguments, cwd, log, log, new_group)


def state(cwd, epoch=EPOCHS - 1):
    """Weights and optimizer state of a checkpoint: file -> name -> array or number."""
    files = pathlib.Path(cwd, "output", str(epoch)).iterdir()
    return {path.name: pickle.loads(path.read_bytes()) for path in files if path.suffix in (".pdparams", ".pdopt")}


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
    """Train to the end; with ``rng``, killed at random moments on the way. Returns the number of kills."""
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
    """Kill and resume runs of both graphs in turn. AssertionError if one ends in other bits. Returns the kills."""
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
