"""Reads a question: a YAML file that says which networks to compare, and how."""

import collections
import hashlib
import itertools
import json
import os

from engine.config import load_config, read_yaml
from engine.errors import UserError, shown

# What a question has: key -> (type, what it must be)
KEYS = {
    "config": (str, "the YAML file of a model package, relative to the question's folder"),
    "results": (str, "the file of result lines, relative to the question's folder"),
    "graph": (str, "static or dynamic"),
    "metric": (str, "the number of the validation that chooses the epoch and the settings, such as loss"),
    "report": (list, "the names of the test's numbers to compare, such as [auc_income]"),
    "seeds": (list, "whole numbers, such as [1, 2, 3]; the search uses the first"),
    "networks": (dict, "for each network's name its keys and values, such as hyper_parameters.gate: softmax"),
    "search": (dict, "for each key to search a list of values; {} for no search"),
}

# What run.py itself sets for each run
OWN_KEYS = [
    f"runner.{name}"
    for name in (
        "seed", "keep_best", "model_save_path", "infer_load_path", "infer_epoch", "export_epoch", "export_path",
        "predict_path",
    )
]  # fmt: skip

Question = collections.namedtuple("Question", list(KEYS))


def read(path):
    """A question, checked; its paths are absolute.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or has another kind of value.
    """
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: {key} is not a key of a question, which has: {', '.join(KEYS)}.")
    for key, (kind, meaning) in KEYS.items():
        if key not in content:
            raise UserError(f"{path}: {key} is missing. Give {meaning}.")
        if not isinstance(content[key], kind):
            raise UserError(f"{path}: {key} is {shown(content[key])}, but must be {meaning}.")
    question = Question(**content)
    _check(path, question)
    folder = os.path.dirname(os.path.abspath(path))
    paths = {key: os.path.normpath(os.path.join(folder, content[key])) for key in ("config", "results")}
    question = question._replace(**paths)
    if not os.path.isfile(question.config):
        raise UserError(f"{path}: config: there is no file {question.config}.")
    return question


def _check(path, question):
    def check(key, is_right):
        if not is_right:
            raise UserError(f"{path}: {key} is {shown(getattr(question, key))}, but must be {KEYS[key][1]}.")

    check("graph", question.graph in ("static", "dynamic"))
    check("seeds", question.seeds and all(type(seed) is int and seed >= 0 for seed in question.seeds))
    check("seeds", len(set(question.seeds)) == len(question.seeds))
    check("report", question.report and all(isinstance(name, str) for name in question.report))
    networks = question.networks.values()
    check("networks", networks and all(isinstance(keys, dict) and _are_keys(keys) for keys in networks))
    values = question.search.values()
    check("search", _are_keys(question.search) and all(isinstance(choices, list) and choices for choices in values))
    for name, keys in [("search", question.search), *question.networks.items()]:
        for key in keys:
            if key in OWN_KEYS:
                raise UserError(f"{path}: {name} sets {key}, which run.py sets for each run. Leave it out.")
            if key in question.search and keys is not question.search:
                raise UserError(f"{path}: {key} is in search, and in networks for {name}. Keep one of the two.")


def _are_keys(mapping):
    return all(isinstance(key, str) and "." in key for key in mapping)


def trials(search):
    """Every combination of the values to search: a list of dicts, one {} if there is nothing to search."""
    return [dict(zip(search, values)) for values in itertools.product(*search.values())]


def as_options(overrides):
    """Keys and values as texts for a tool's ``-o``."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def recipe(config, overrides):
    """What tells a run from others: the SHA-256 of its whole config, wherever a key's value comes from.

    Args:
        config: path of the package's YAML file.
        overrides: the run's keys and values.
    """
    whole = load_config(config, as_options(overrides))
    named = {key: value for key, value in whole.items() if key not in ("config_abs_dir", "yaml_path")}
    return digest(named)


def digest(named):
    """The SHA-256 of named values, in any order."""
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()
