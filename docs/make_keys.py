"""Write docs/keys.md from the tables of keys: python docs/make_keys.py (tests/test_keys.py compares)."""

import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import hyper_parameters  # noqa: E402  (the path is set above)
from engine.keys import REQUIRED, RUNNER_KEYS  # noqa: E402  (likewise)
from tabular import reader as table_reader  # noqa: E402  (likewise)

HEAD = """# All keys

Made by `python docs/make_keys.py` from the tables that also check the values: `tools/engine/keys.py` for
the tools, `tabular/reader.py` for its own keys, `hyper_parameters.py` for the model.
`python tools/trainer.py -m config.yaml --print-config` shows the values in force and where each comes from.
"""
TABLE = """
## {title}

{text}

| key | type and range | default | meaning |{column}
| --- | --- | --- | --- |{line}
{rows}
"""
JOBS = {"train": " (training)", "infer": " (evaluation)", "export": " (export)", "": ""}


def runner_rows():
    """One line of the table for each key of the tools."""
    for name, key in RUNNER_KEYS.items():
        default = "required" if key.default is REQUIRED else _text(key.default)
        yield f"| `runner.{name}` | {_kind(key)} | {default} | {key.meaning}{JOBS[key.job]} | {_yes(key.steps)} |"


def _kind(key):
    kinds = {bool: "true, false", str: "text", list: "list", int: f"whole number >= {key.low}"}
    kind = [kinds[key.kind]] if key.kind in kinds else []
    return ", ".join(kind + [_text(choice) for choice in key.choices or ()])


def _yes(value):
    return "yes" if value else ""


def table_rows():
    """One line of the table for each key of tabular/reader.py."""
    for name, (wanted, default, meaning, _) in table_reader.KEYS.items():
        yield f"| `runner.{name}` | {wanted} | {'required' if default is None else default} | {meaning} |"


def hyper_rows():
    """One line of the table for each key of the model."""
    defaults = hyper_parameters.HyperParameters.defaults()
    for key, field in zip(defaults, dataclasses.fields(hyper_parameters.HyperParameters)):
        facts = field.metadata
        yield f"| `{key}` | {_range(facts)} | {_text(defaults[key])} | {facts['meaning']} | {_yes(facts['network'])} |"


def _range(rule):
    if rule["choices"]:
        return ", ".join(rule["choices"]) + (", module.function" if rule["kind"] == "name" else "")
    lists = {"numbers": "list of numbers >= 0", "sizes": "list of whole numbers >= 1", "tasks": "list of mappings"}
    if rule["kind"] in lists:
        return lists[rule["kind"]]
    kind = "whole number" if rule["kind"] is int else "number"
    low = f" >= {rule['low']}" if rule["low"] is not None else f" > {rule['above']}"
    return kind + low + (f", <= {rule['high']}" if rule["high"] is not None else "")


def _text(value):
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def section(title, text, rows, column=None):
    """A heading, its text and a table; ``column`` heads a fifth column."""
    more = {"column": f" {column} |" if column else "", "line": " --- |" if column else ""}
    return TABLE.format(title=title, text=text, rows="\n".join(rows), **more)


def page():
    """The whole of docs/keys.md."""
    tools = (
        "Read by `tools/`. A package's reader may have more (`RecDataset.config_keys`). A resumed run may change a "
        "key, unless it decides what a training step computes: then a change is told, or refused within an epoch."
    )
    table = "Read by `tabular/reader.py` ([`tables.md`](tables.md)), where a config names it as its reader."
    model = (
        "Read by the model. A key that is none of these is refused. A key that shapes the network must be what it was "
        "when a save was made, or the save is refused. A resumed run may change none of these."
    )
    return (
        HEAD
        + section("runner", tools, runner_rows(), "decides the steps")
        + section("runner, for tables", table, table_rows())
        + section("hyper_parameters", model, hyper_rows(), "shapes the network")
    )


if __name__ == "__main__":
    (ROOT / "docs" / "keys.md").write_text(page(), encoding="utf-8")
