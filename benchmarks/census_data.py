"""Census-Income, as examples/census/make_data.py encodes it, for the table ``census``: cases and AUCs."""

import json
import pathlib

import cases
import numpy as np

import make_data
from dselect_k_model import metrics

DATA = pathlib.Path(make_data.__file__).parent / "data"
TASKS = ("income", "never_married")


def folder(full):
    """That of the whole file, which has to be made, or of the sample."""
    return DATA / "full" if full else DATA


def write(path, folder, part, hyper):
    """Write a case of all rows of a part, without weights and answers; returns the path."""
    vocabulary = json.loads((folder / make_data.VOCABULARY).read_text(encoding="ascii"))
    hyper = {**hyper, "input__vocabulary_sizes": make_data.vocabulary_sizes(vocabulary)}
    with np.load(folder / part / f"{part}.npz") as arrays:
        inputs = [arrays["dense"], arrays["ids"].astype("int64")]
        labels = [arrays[name].astype("float32") for name in TASKS]
    cases.write(path, cases.Case(hyper, inputs, labels, {}, [], [], []))
    return path


def aucs(scores, labels):
    """AUC of each task."""
    found = []
    for of_task in zip(scores, labels):
        auc = metrics.Auc()
        auc.update(*map(np.asarray, of_task))
        found.append(auc.accumulate())
    return found
