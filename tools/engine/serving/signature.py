"""signature.json of an exported model: its inputs, its outputs, its tasks, and the SHA-256 of its files.

A task is a dict:

suffix               what ends the names of the task's columns and metrics
outputs              part, such as logits or probabilities -> name among the outputs
label                name of the label's feed; null: none is known
label_columns        names of its columns in what predict.py writes
classes              what to write there for the labels 0, 1, ...; absent: the numbers
columns              the columns that predict.py writes: a name, the part they are taken ``of``, how (``TAKES``), and
                     the ``names`` to write for 0, 1, ..., if not the numbers.
                     The first entry of a name whose part has been exported makes it
metric               name, column, and "equal" (the share of right values) or "difference" (the mean absolute error):
                     what predict.py prints where the package's own metrics cannot be computed; [] for none
negative_is_missing  whether a label below 0 is missing; one that is nan always is
"""

import json
import os

import numpy as np

from engine.checkpoints import manifests
from engine.errors import UserError

PREFIX, SIGNATURE, FORMAT = "rec_inference", "signature.json", 4
READ = (2, 3, FORMAT)  # 3 has no names


def _single(values):
    """[B, 1] as [B]."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


TAKES = {
    "value": lambda values: _single(values),
    "argmax": lambda values: values.argmax(axis=-1),
    "max": lambda values: values.max(axis=-1),
    "above": lambda values, threshold: (_single(values) > threshold).astype("int64"),
}
CLASSES = {
    "columns": [
        {"name": "prediction", "of": "logits", "take": "argmax"},
        {"name": "prediction", "of": "probabilities", "take": "argmax"},
        {"name": "probability", "of": "probabilities", "take": "max"},
    ],
    "metric": ["Accuracy", "prediction", "equal"],
    "negative_is_missing": True,
}
FORMAT_2 = {  # what format 2 meant by the kind of a task
    "classes": CLASSES,
    "binary": {
        "columns": [
            {"name": "prediction", "of": "probabilities", "take": ["above", 0.5]},
            {"name": "prediction", "of": "logits", "take": ["above", 0.0]},
            {"name": "probability", "of": "probabilities", "take": "value"},
        ],
        "metric": ["Accuracy", "prediction", "equal"],
        "negative_is_missing": True,
    },
    "regression": {
        "columns": [{"name": "value", "of": "value", "take": "value"}],
        "metric": ["mae", "value", "difference"],
        "negative_is_missing": False,
    },
}


def of_classes(suffix, outputs, label):
    """A task of a package that does not describe it, by the names of its outputs."""
    return {"suffix": suffix, "outputs": outputs, "label": label, "label_columns": [f"label{suffix}"], **CLASSES}


def columns_of(task, outputs, label=None):
    """What predict.py writes of a task: column -> [B].

    Args:
        task: of a signature.
        outputs: name -> array [B, ...].
        label: [B] or [B, number of labels]; None: the data have none.
    """
    columns, suffix = {}, task["suffix"]
    if label is not None:
        of_task = zip(task["label_columns"], label.reshape(len(label), -1).T)
        names = task.get("classes")
        columns.update((column, _named(values, names) if names else values) for column, values in of_task)
    made = set()
    for entry in task["columns"]:
        if entry["name"] in made or entry["of"] not in task["outputs"]:
            continue
        made.add(entry["name"])
        take, *arguments = [entry["take"]] if isinstance(entry["take"], str) else entry["take"]
        values = TAKES[take](outputs[task["outputs"][entry["of"]]], *arguments)
        if "names" in entry:
            values = _named(values, entry["names"])
        if values.ndim == 1:
            columns[entry["name"] + suffix] = values
        else:  # a column for each label
            names = [entry["name"] + name[len("label") :] for name in task["label_columns"]]
            columns.update(zip(names, values.T))
    return columns


def _named(numbers, names):
    """The names of classes, by number; "" for a missing one: nan, or below 0."""
    numbers = np.where(numbers >= 0, numbers, len(names)).astype("int64")
    return np.array([*names, ""])[numbers]


def write(folder, facts):
    """Write the signature of the exported model in ``folder``, whose files are whole."""
    files = {name: digest for name, digest in manifests.digests(folder).items() if name.startswith(PREFIX)}
    with open(os.path.join(folder, SIGNATURE), "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **facts, "files": files}, file, indent=1)


def read(folder):
    """The signature of an exported model, its files checked.

    Raises:
        UserError: the folder or one of its files is missing or changed.
    """
    path = os.path.join(folder, SIGNATURE)
    try:
        with open(path, encoding="utf-8") as file:
            signature = json.load(file)
        known = signature["format"] in READ
        files = dict(signature["files"])
        if signature["format"] == 2:
            _upgrade(signature)
        _check(signature)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Give a folder that tools/export.py wrote (runner.export_path)."
        ) from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: this is not the signature of an exported model ({error!r}). Export it again."
        ) from error
    if not known:
        raise UserError(
            f"{path}: its format is {signature['format']!r}; these tools read formats {', '.join(map(str, READ))}."
        )
    manifests.check_files(folder, files, path)
    return signature


def _upgrade(signature):
    for task in signature["tasks"]:
        task.update(FORMAT_2[task.pop("kind")], label_columns=[f"label{task['suffix']}"])


def _check(signature):
    """Raise ValueError, KeyError or TypeError where a signature is not as ``write`` writes it."""
    for feed in signature["feeds"]:
        np.dtype(feed["dtype"]), [int(size) for size in feed["shape"]], feed["name"].strip()
    outputs = [output["name"] for output in signature["outputs"] if type(output["per_example"]) is bool]
    feeds = [feed["name"] for feed in signature["feeds"]]
    for task in signature["tasks"]:
        _check_task(task)
        if not set(task["outputs"].values()) <= set(outputs) or task["label"] not in [*feeds, None]:
            raise ValueError("its names do not fit together")
    if not manifests.are_digests(signature.get("encoding", {})):
        raise ValueError("its encoding is described wrongly")
    if not signature["inputs"] or not set(signature["inputs"]) <= set(feeds):
        raise ValueError("its names do not fit together")


def _are_texts(names):
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _check_task(task):
    known = isinstance(task["suffix"], str) and task["outputs"] and type(task["negative_is_missing"]) is bool
    for entry in task["columns"]:
        take, *arguments = [entry["take"]] if isinstance(entry["take"], str) else entry["take"]
        known = known and take in TAKES and isinstance(entry["name"] + entry["of"], str)
        known = known and len(arguments) == (take == "above") and all(isinstance(x, float) for x in arguments)
        known = known and _are_texts(entry.get("names", []))
    if task["metric"]:
        name, column, formula = task["metric"]
        known = known and isinstance(name + column, str) and formula in ("equal", "difference")
    known = known and _are_texts(task.get("classes", []))
    if not known or not all(name.startswith("label") for name in task["label_columns"]):
        raise ValueError("a task of it is described wrongly")
