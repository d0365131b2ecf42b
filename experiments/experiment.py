"""An experiment: a YAML file that says which networks to compare, and the file of its result lines."""

import collections
import hashlib
import itertools
import json
import os

from engine.config import load_config, read_yaml
from engine.errors import UserError, shown


def _is_text(value):
    return isinstance(value, str)


def _are_texts(value):
    return isinstance(value, list) and value and all(map(_is_text, value))


def _are_seeds(value):
    are_whole = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    return are_whole and len(set(value)) == len(value)


def _are_keys(value):
    return isinstance(value, dict) and all(_is_text(key) and "." in key for key in value)


def _are_networks(value):
    return isinstance(value, dict) and value and all(map(_are_keys, value.values()))


def _are_choices(value):
    return _are_keys(value) and all(isinstance(choices, list) and choices for choices in value.values())


KEYS = {  # key -> (check, what it must be)
    "config": (_is_text, "the YAML file of a model package, relative to the experiment's folder"),
    "results": (_is_text, "the file of result lines, relative to the experiment's folder"),
    "graph": (("static", "dynamic").__contains__, "static or dynamic"),
    "metric": (_is_text, "the metric of the validation that chooses the epoch and the settings, such as loss"),
    "report": (_are_texts, "the names of the test's metrics to compare, such as [auc_income]"),
    "seeds": (_are_seeds, "different whole numbers, such as [1, 2, 3]; the search uses the first"),
    "networks": (_are_networks, "for each network's name its keys and values, such as hyper_parameters.gate: softmax"),
    "search": (_are_choices, "for each key to search a list of values; {} for no search"),
}
# what run.py itself sets for each run
OWN_KEYS = {
    f"runner.{name}"
    for name in "seed keep_best model_save_path infer_load_path infer_epoch export_epoch export_path predict_path "
    "log_json".split()
}
STAGES = ("search", "final", "speed")
LINE = {"stage": str, "network": str, "overrides": dict, "seed": int, "fingerprint": str}  # what each line has

Experiment = collections.namedtuple("Experiment", list(KEYS))  # paths are absolute


def read(path):
    """An experiment, checked.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or has another kind of value.
    """
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: {key} is not a key of an experiment, which has: {', '.join(KEYS)}.")
    for key, (is_valid, meaning) in KEYS.items():
        if key not in content:
            raise UserError(f"{path}: {key} is missing. Give {meaning}.")
        if not is_valid(content[key]):
            raise UserError(f"{path}: {key} is {shown(content[key])}, but must be {meaning}.")
    for name, keys in [("search", content["search"]), *content["networks"].items()]:
        for key in keys:
            if key in OWN_KEYS:
                raise UserError(f"{path}: {name} sets {key}, which run.py sets for each run. Remove it.")
            if key in content["search"] and keys is not content["search"]:
                raise UserError(f"{path}: {key} is in search, and in networks for {name}. Keep one of the two.")
    folder = os.path.dirname(os.path.abspath(path))
    for key in ("config", "results"):
        content[key] = os.path.normpath(os.path.join(folder, content[key]))
    if not os.path.isfile(content["config"]):
        raise UserError(f"{path}: config: there is no file {content['config']}.")
    return Experiment(**content)


def trials(search):
    """Every combination of the values to search: a list of dicts, one {} if there is nothing to search."""
    return [dict(zip(search, values)) for values in itertools.product(*search.values())]


def as_options(overrides):
    """Keys and values as texts for a tool's ``-o``."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def digest(values):
    """The SHA-256 of named values, in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(config, overrides):
    """Identifies a run: the digest of its whole config, wherever a key's value comes from."""
    whole = load_config(config, as_options(overrides))
    return digest({key: value for key, value in whole.items() if key not in ("config_abs_dir", "yaml_path")})


def read_lines(path):
    """All result lines of a file, as dicts; [] if there is no file yet.

    Raises:
        UserError: a line is not the result of a run.
    """
    if not os.path.exists(path):
        return []
    found = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                is_run = all(isinstance(line[key], kind) for key, kind in LINE.items()) and line["stage"] in STAGES
            except (ValueError, KeyError, TypeError, RecursionError):
                is_run = False
            if not is_run:
                raise UserError(f"{path}, line {number}: this is not the result of a run. Remove the line.")
            found.append(line)
    return found


def add_line(path, line):
    """Add a result line in one write, so that a run that is stopped leaves no part of one."""
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())
