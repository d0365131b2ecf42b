"""Write docs/keys.md from the declarations of all keys: python scripts/make_keys.py"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "experiments")]

import experiment  # noqa: E402  (the path is set above)

import multiMNIST_reader  # noqa: E402
from dselect_k_model import tasks  # noqa: E402
from dselect_k_model.gates import GATES  # noqa: E402
from dselect_k_model.hyper_parameters import HyperParameters  # noqa: E402
from dselect_k_model.kinds import KINDS  # noqa: E402
from engine.keys import RUNNER_KEYS  # noqa: E402
from tabular import reader as table_reader  # noqa: E402

HEAD = """# All keys

Made by `python scripts/make_keys.py` from the declarations that also check the values.
`python tools/trainer.py -m config.yaml --print-config` shows the values in force and where each comes from.
A leading `~` in a path means home. The last column says what a key decides: with another value of one that decides the
network, a checkpoint is refused; with another value of one that decides the step, a resumed run is refused inside an
epoch, and warned of between two.
"""
JOBS = {"train": " (training)", "infer": " (evaluation)", "export": " (export)", "": ""}


def section(title, text, prefix, keys):
    """A heading, a sentence, and a table of keys: name -> Key."""
    rows = "\n".join(
        f"| `{prefix}{name}` | {key.wanted()} | {_default(key)} | {key.meaning}{JOBS[key.job]} | {key.decides} |"
        for name, key in keys.items()
    )
    head = "| key | value | default | meaning | decides |\n| --- | --- | --- | --- | --- |"
    return f"\n## {title}\n\n{text}\n\n{head}\n{rows}\n"


def _default(key):
    value = key.default
    if key.is_required:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value)


def page():
    """The text of docs/keys.md."""
    parts = [
        HEAD,
        section("The tools", "Read by all packages' tools.", "runner.", RUNNER_KEYS),
        section("The table reader", "`tabular.reader` reads these as well.", "runner.", table_reader.KEYS),
        section("The image reader", "`multiMNIST_reader` reads these as well.", "runner.", multiMNIST_reader.KEYS),
        section("The model", "A key that is not in a config has its default.", tasks.PREFIX, HyperParameters.keys()),
        section("A task", "Of each entry of `hyper_parameters.tasks`.", "", tasks.KEYS),
    ]
    for name, gate in ((name, gate) for name, gate in GATES.items() if gate.keys):
        parts.append(section(f"The gate {name}", "Of `hyper_parameters.gate_options`.", "", gate.keys))
    for name, kind in KINDS.items():
        parts.append(section(f"A task of kind {name}", (kind.__doc__ or "").split("\n\n")[0], "", kind.keys))
    parts.append(section("An experiment", "Of a YAML file that `experiments/run.py` reads.", "", experiment.KEYS))
    return "".join(parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    (ROOT / "docs" / "keys.md").write_text(page(), encoding="utf-8")
