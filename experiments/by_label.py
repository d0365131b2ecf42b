"""Which examples does a per-example gate send to which expert? python experiments/by_label.py

Trains config_bigdata.yaml with the gate dselect_k_per_example, and predicts the test data. A line of by_label.jsonl
gets, for each task, the mean weight of each expert over the examples of each label. --table prints the tables of these
lines, and measures nothing: an expert's weight by label, of the first seed; and for all seeds, which share of the
weights' variance is between the labels. 1: all examples of a label have the same weights; 0: a label says nothing.
"""

import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("experiments", "tools", "scripts")]

import experiment as experiments  # noqa: E402  (the path is set above)
import machine_facts  # noqa: E402
import numpy as np  # noqa: E402
from run import run_tool  # noqa: E402
from table import markdown, spread  # noqa: E402

CONFIG = ROOT / "config_bigdata.yaml"
RESULTS = ROOT / "experiments" / "by_label.jsonl"
TASKS = {"1": "top-left digit", "2": "bottom-right digit"}  # by the suffix of their names
VARIES = 1e-6  # a variance that is more than rounding
LEAST = 0.005  # the table leaves out experts whose mean weights are all below this


def between_labels(weights, labels):
    """The share of the variance of the weights [N, n] that is between the labels [N]; 0 if they do not vary."""
    means = {label: weights[labels == label].mean(axis=0) for label in np.unique(labels)}
    within = weights - np.stack([means[label] for label in labels])
    variance = weights.var(axis=0).sum()
    return 1 - float((within**2).mean(axis=0).sum() / variance) if variance > VARIES else 0.0


def measure(seed):
    """Train, predict, and add a line."""
    facts = machine_facts.measured_on("*.jsonl")
    fetches = [f"{name}{suffix}" for suffix in TASKS for name in ("logits", "gate_weights")]
    options = [f"runner.seed={seed}", "hyper_parameters.gate=dselect_k_per_example"]
    options += ["runner.model_save_path=output", "runner.infer_load_path=output", "runner.export_path=exported"]
    options += ["runner.predict_path=predictions.npz", f"runner.save_inference_fetch_varnames={json.dumps(fetches)}"]
    with tempfile.TemporaryDirectory() as folder:
        for tool in ("static_trainer", "export", "predict"):
            run_tool(tool, CONFIG, options, folder)
        with np.load(pathlib.Path(folder, "predictions.npz")) as arrays:
            predictions = dict(arrays)
    found = {}
    for suffix, task in TASKS.items():
        weights, labels = (predictions[f"{name}{suffix}"] for name in ("gate_weights", "label"))
        means = {int(label): weights[labels == label].mean(axis=0).tolist() for label in np.unique(labels)}
        accuracy = float((predictions[f"logits{suffix}"].argmax(axis=1) == labels).mean())
        used = float((weights > 0).sum(axis=1).mean())
        share = between_labels(weights, labels)
        found[task] = {"weights": means, "between_labels": share, "experts": used, "accuracy": accuracy}
    experiments.add_line(RESULTS, {"seed": seed, "tasks": found, **facts})
    print(f"seed {seed}: " + ", ".join(f"{task} {of['accuracy']:.4f}" for task, of in found.items()), flush=True)


def table():
    """The lines of the tables, in markdown: one for each task, and one of all seeds.

    Raises:
        UserError: there is no line, or they are of two commits, or of one seed twice.
    """
    lines = experiments.read_apart(RESULTS, "seed")
    found = []
    for task in TASKS.values():
        weights = lines[0]["tasks"][task]["weights"]
        matrix = np.array([weights[label] for label in weights])
        used = np.flatnonzero(matrix.max(axis=0) >= LEAST)
        rows = [[label, *(f"{value:.2f}" for value in row[used])] for label, row in zip(weights, matrix)]
        found += markdown([[task, *(f"expert {i}" for i in used)], ["---"] * (1 + len(used)), *rows])
        found.append("")
    rows = []
    for task in TASKS.values():
        of_seeds = [line["tasks"][task] for line in lines]
        rows.append(
            [task, *(spread([of[key] for of in of_seeds]) for key in ("between_labels", "experts", "accuracy"))]
        )
    titles = ["", "share of the weights' variance between labels", "experts for an example", "accuracy"]
    return found + markdown([titles, ["---"] * 4, *rows])


if __name__ == "__main__":
    experiments.command_line_of_seeds(__doc__, measure, table)
