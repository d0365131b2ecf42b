"""An experiment: a YAML file that says which networks to compare, and the file of its result lines."""

import argparse
import collections
import hashlib
import itertools
import json
import os
import sys

from engine.config import load_config, read_yaml
from engine.errors import UserError, shown
from engine.keys import REQUIRED, Key
from engine.shared import config_key

KEYS = {
    "config": Key(str, REQUIRED, "The YAML file of a model package, relative to the experiment's folder."),
    "results": Key(str, REQUIRED, "The file of result lines, relative to the experiment's folder."),
    "graph": Key("choice", REQUIRED, "The graph to train and evaluate in.", choices=("static", "dynamic")),
    "metric": Key(str, REQUIRED, "The metric of the validation that chooses the epoch and the settings, such as loss."),
    "report": Key("texts", REQUIRED, "The names of the test's metrics to compare, such as [auc_income]."),
    "seeds": Key("seeds", REQUIRED, "The seeds of the chosen settings' runs; the search uses the first."),
    "networks": Key(
        "mapping", REQUIRED, "For each network's name its keys and values, such as {hyper_parameters.gate: softmax}."
    ),
    "search": Key("mapping", REQUIRED, "For each key to search a list of values; {} for no search."),
    "logs": Key(
        str,
        None,
        "The folder for the logs of the final trainings, as runner.log_json writes them, relative to the "
        "experiment's folder; without it they are not kept.",
    ),
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
    try:
        content = config_key.check_all(KEYS, read_yaml(path), owner="an experiment")
        _check_networks(content["networks"], content["search"])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if not content["report"]:
        raise UserError(f"{path}: report is empty. {KEYS['report'].meaning}")
    folder = os.path.dirname(os.path.abspath(path))
    for key in ("config", "results", "logs"):
        if content[key] is not None:
            content[key] = os.path.normpath(os.path.join(folder, content[key]))
    if not os.path.isfile(content["config"]):
        raise UserError(f"{path}: config: there is no file {content['config']}.")
    return Experiment(**content)


def _check_networks(networks, search):
    if not networks:
        raise ValueError("networks is empty. " + KEYS["networks"].meaning)
    for name, keys in [("search", search), *networks.items()]:
        if not isinstance(keys, dict) or not all("." in str(key) for key in keys):
            raise ValueError(f"{name} is {shown(keys)}, but must be whole keys with values. {KEYS['networks'].meaning}")
        for key in keys:
            if key in OWN_KEYS:
                raise ValueError(f"{name} sets {key}, which run.py sets for each run. Remove it.")
            if key in search and keys is not search:
                raise ValueError(f"{key} is in search, and in networks for {name}. Keep one of the two.")
    for key, values in search.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"search has {shown(values)} for {key}, but must have a list of values.")


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


def final_lines(experiment, network, lines):
    """Those of the result lines that are a network's with the chosen settings, in the order of the experiment's seeds.

    Raises:
        UserError: they are of two settings.
    """
    final = [line for line in lines if line["network"] == network and line["stage"] == "final" and "error" not in line]
    final = [line for seed in experiment.seeds for line in final if line["seed"] == seed]
    if len({str(sorted(line["overrides"].items())) for line in final}) > 1:
        raise UserError(f"{experiment.results}: {network} has final lines of two settings. Remove the older ones.")
    return final


def read_apart(path, *keys):
    """The lines of JSON of a file, which differ in the values of these keys.

    Raises:
        UserError: there is no file, the lines are of two commits, or two have the same values.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(text) for text in file]
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no result yet. Run this without --table.") from error
    if len({line["commit"] for line in lines}) > 1:
        raise UserError(f"{path}: there are lines of two commits. Remove the older ones.")
    if len({tuple(line[key] for key in keys) for line in lines}) < len(lines):
        raise UserError(f"{path}: there are two lines with the same {' and '.join(keys)}. Remove one.")
    return lines


def command_line(description, act, **options):
    """Read a script's command line and call ``act(its arguments)``; exit code 2 after one message for a user's mistake.

    Args:
        description: the script's docstring, of which --help shows the first line.
        options: name -> what ``parser.add_argument`` takes, beside -m.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("-m", "--experiment", "--question", required=True, metavar="PATH", help="its YAML file")
    _act(parser, act, options)


def command_line_of_seeds(description, measure, table, **options):
    """The same for a script with --seeds and --table: call ``measure(seed, values of the options)``, or print a table.

    Args:
        description, options: as for ``command_line``.
        table: () -> lines.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[12345], metavar="SEED", help="one training for each")
    parser.add_argument("--table", action="store_true", help="print the table of the lines that there are")

    def act(args):
        if args.table:
            print("\n".join(table()))
            return
        for seed in args.seeds:
            measure(seed, **{name: getattr(args, name) for name in options})

    _act(parser, act, options)


def _act(parser, act, options):
    for name, settings in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    try:
        act(parser.parse_args())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def add_line(path, line):
    """Add a result line in one write, so that a run that is stopped leaves no part of one."""
    with open(path, "ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())
