"""How long a training takes to reach the published accuracies: python experiments/time_to_accuracy.py

The recipe of config_bigdata.yaml, by this package in both graphs, and in PyTorch (--torch-python PATH) in three forms:
seconds from the command to the end of the last epoch, and then the accuracies on the test data. Beside them, 100 epochs
of the dense network in plain Paddle, as the rate of its steps says. One after the other, on an idle machine. Each adds
a line to time_to_accuracy.jsonl; --table prints the table of these lines, and measures nothing. In PyTorch, a seed
decides the order of the examples alone: the initial weights are always the same, of this package.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "benchmarks", "tools", "scripts", ".")]

import experiment as experiments  # noqa: E402  (the path is set above)
import machine_facts  # noqa: E402
from measuring import Bench, ProcessSettings, WorkerError, clean_environment  # noqa: E402
from run import TOOLS, events_of, run_tool  # noqa: E402
from table import least_to_greatest, markdown  # noqa: E402

from engine.config import load_config  # noqa: E402
from engine.errors import UserError  # noqa: E402

CONFIG = ROOT / "config_bigdata.yaml"
RESULTS = ROOT / "experiments" / "time_to_accuracy.jsonl"
PUBLISHED = (0.930460, 0.916088)  # of PaddleRec's example, after 100 epochs of batches of 256
PUBLISHED_EPOCHS, PUBLISHED_BATCH, EXAMPLES = 100, 256, 100_000
GRAPHS = {"static graph": "static", "dynamic graph": "dynamic"}
TORCH = {
    "PyTorch, experts as one network": {"experts": "grouped", "compiled": False},
    "PyTorch, experts as one network, compiled": {"experts": "grouped", "compiled": True},
    "PyTorch, experts without weight skipped": {"experts": "needed", "compiled": False},
}
# what torch_recipe.py has, beside the keys that it is told
FIXED = {"gate": "dselect_k", "gamma": 1.0, "optimizer.schedule": "one_cycle", "entropy_schedule": "constant"}
PLAIN = "plain Paddle, every expert, 100 epochs of batches of 256"
FAILURES = (UserError, WorkerError, OSError, subprocess.CalledProcessError)


def by_tools(name, seed, folder):
    """Train and evaluate by the project's tools."""
    options = [f"runner.seed={seed}", "runner.model_save_path=output", "runner.infer_load_path=output"]
    began = time.perf_counter()
    run_tool(TOOLS[GRAPHS[name], "train"], CONFIG, options, folder)
    seconds = time.perf_counter() - began
    last = load_config(str(CONFIG))["runner.epochs"] - 1
    options += [f"runner.infer_epoch={last}", "runner.log_json=log.json"]
    run_tool(TOOLS[GRAPHS[name], "infer"], CONFIG, options, folder)
    (found,) = [event["numbers"] for event in events_of(folder) if event["event"] == "epoch"]
    accuracies = [found["Accuracy1"], found["Accuracy2"]]
    return {"seconds": seconds, "accuracies": accuracies, "experts_used": found["experts_used"]}


def by_torch(name, seed, folder, python):
    """Train and evaluate by PyTorch, from initial weights of this package."""
    config = load_config(str(CONFIG))
    hyper = {key.partition(".")[2]: value for key, value in config.items() if key.startswith("hyper_parameters.")}
    for key, value in FIXED.items():
        if hyper.get(key, value) != value:
            raise UserError(f"{CONFIG}: hyper_parameters.{key} is {hyper[key]}, but torch_recipe.py has {value} alone.")
    with _bench(folder) as bench:
        case = bench.case(None, **{key: value for key, value in hyper.items() if "." not in key})
    spec = {"case": case, "seed": seed, **TORCH[name], "entropy_weight": hyper["entropy_weight"]}
    spec.update({part: str(ROOT / config[f"runner.{part}_data_dir"]) for part in ("train", "test")})
    spec.update(batch=config["runner.train_batch_size"], epochs=config["runner.epochs"])
    spec.update(rate=hyper["optimizer.learning_rate"], gate_factor=hyper["optimizer.gate_learning_rate_factor"])
    command = [python, str(ROOT / "benchmarks" / "torch_recipe.py"), json.dumps(spec)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        trained = process.stdout.readline()
        seconds = time.perf_counter() - began
        rest = process.stdout.read()
    if trained != "trained\n" or process.returncode:
        raise UserError(f"{name}: torch_recipe.py ended with exit code {process.returncode}. Its message is above.")
    return {"seconds": seconds, **json.loads(rest)}


def by_plain_paddle(folder):
    """The time of all epochs, from the median of some steps."""
    with _bench(folder) as bench:
        as_installed = ProcessSettings("default settings", tuned=())
        bench.add(PLAIN, "baseline.PlainPaddle", "rate", bench.case(None), as_installed)
        bench.steps(PLAIN, 3)
        a_step = statistics.median(bench.steps(PLAIN, 20))
    return {"seconds": a_step * PUBLISHED_EPOCHS * EXAMPLES / PUBLISHED_BATCH}


def _bench(folder):
    return Bench(types.SimpleNamespace(batch=PUBLISHED_BATCH, hyper={}), folder)


def measure(seed, torch_python):
    """Add a line for each way.

    Raises:
        UserError: a way failed; those after it have been measured all the same.
    """
    facts = machine_facts.measured_on("*.jsonl")
    ways = {name: lambda folder, name=name: by_tools(name, seed, folder) for name in GRAPHS}
    ways[PLAIN] = by_plain_paddle
    for name in TORCH if torch_python else ():
        ways[name] = lambda folder, name=name: by_torch(name, seed, folder, torch_python)
    failed = []
    for name, way in ways.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                line = {"way": name, "seed": seed, **way(folder), **facts}
        except FAILURES as error:
            failed.append(f"{name}: {error}")
            continue
        experiments.add_line(RESULTS, line)
        print(f"{name}: {line['seconds']:.0f} s, {line.get('accuracies', '')}", flush=True)
    if failed:
        raise UserError("; ".join(failed))


def table():
    """The lines of the table, in markdown: the median of the seconds over the seeds, the least accuracies.

    Raises:
        UserError: the lines are of two commits, or of one seed twice, or one way is missing.
    """
    lines = experiments.read_apart(RESULTS, "way", "seed")
    if not any(line["way"] == PLAIN for line in lines):
        raise UserError(f"{RESULTS}: there is no line of {PLAIN}, to compare with. Run this without --table.")
    of_ways = {}
    for line in lines:
        of_ways.setdefault(line["way"], []).append(line)
    seconds = {way: statistics.median(line["seconds"] for line in found) for way, found in of_ways.items()}
    rows = [["", "seconds", "times as fast", "Accuracy1", "Accuracy2", "experts in use", "seeds"], ["---"] * 7]
    for way, found in of_ways.items():
        row = [way, f"{seconds[way]:.0f}", f"{seconds[PLAIN] / seconds[way]:.0f}"]
        if way == PLAIN:
            rows.append([*row, "", "", "8", ""])
            continue
        least = [min(line["accuracies"][task] for line in found) for task in (0, 1)]
        reached = [f"{value:.4f}" + (" (missed)" if value < goal else "") for value, goal in zip(least, PUBLISHED)]
        experts = least_to_greatest([line["experts_used"] for line in found])
        rows.append([*row, *reached, experts, str(len(found))])
    return markdown(rows)


if __name__ == "__main__":
    words = "an interpreter with PyTorch, for its rows"
    experiments.command_line_of_seeds(__doc__, measure, table, torch_python={"metavar": "PATH", "help": words})
