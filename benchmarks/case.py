"""A case: one network's weights, one batch, and the dense mixture's answers. All variants of a case get its file.

NumPy only: PyTorch's interpreter reads it too.
"""

import json

import numpy as np


class Case:
    """Read the file that ``ours.write_reference`` wrote.

    Attributes:
        hyper: keys of ``hyper_parameters``, as ``tests/ways.config`` takes them.
        batch: [image, label of task 1, ...].
        weights: {structured name: array} of the package's network.
        logits: per task, of the dense mixture in evaluation mode.
        losses: of the first training step and of the one after it, on the same batch.
        active: experts with a weight, sorted.
    """

    def __init__(self, path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays["facts"]))
        self.hyper, self.active = facts["hyper"], facts["active"]
        self.batch = [arrays[f"batch{i}"] for i in range(facts["items"])]
        self.logits = [arrays[f"logits{t}"] for t in range(facts["items"] - 1)]
        self.losses = arrays["losses"]
        self.weights = {n[len("weight/") :]: a for n, a in arrays.items() if n.startswith("weight/")}


def write(path, hyper, active, batch, logits, losses, weights):
    """Write a case; the arguments are ``Case``'s attributes."""
    arrays = {f"batch{i}": item for i, item in enumerate(batch)}
    arrays.update({f"logits{t}": z for t, z in enumerate(logits)})
    arrays.update({f"weight/{name}": value for name, value in weights.items()})
    facts = json.dumps({"hyper": hyper, "active": active, "items": len(batch)})
    np.savez(path, facts=np.array(facts), losses=np.array(losses), **arrays)
