"""Write docs/keys.md from the two tables of keys: python docs/make_keys.py (tests/test_keys.py compares)."""

import dataclasses
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import hyper_parameters  # noqa: E402  (the path is set above)
from engine.keys import REQUIRED, RUNNER_KEYS  # noqa: E402  (likewise)

HEAD = """# All keys

Made by `python docs/make_keys.py` from the tables that also check the values: `tools/engine/keys.py` for
the tools, `hyper_parameters.py` for the model. `python tools/trainer.py -m config.yaml
--print-config` shows the values in force and where each comes from.
"""
TABLE = "\n## {title}\n\n{text}\n\n| key | type and range | default | meaning |\n| --- | --- | --- | --- |\n{rows}\n"
JOBS = {"train": " (training)", "infer": " (evaluation)", "export": " (export)", "": ""}


def runner_rows():
    """One line of the table for each key of the tools."""
    for name, key in RUNNER_KEYS.items():
        default = "required" if key.default is REQUIRED else _text(key.default)
        yield f"| `runner.{name}` | {_kind(key.kind)} | {default} | {key.meaning}{JOBS[key.job]} |"


def _kind(kind):
    if isinstance(kind, tuple):
        return ", ".join(_text(choice) for choice in kind)
    return {bool: "true, false", str: "text", list: "list"}.get(kind) or f"whole number >= {kind}"


def hyper_rows():
    """One line of the table for each key of the model."""
    defaults = hyper_parameters.HyperParameters.defaults()
    for key, field in zip(defaults, dataclasses.fields(hyper_parameters.HyperParameters)):
        yield f"| `{key}` | {_range(field.metadata)} | {_text(defaults[key])} | {field.metadata['meaning']} |"


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


def page():
    """The whole of docs/keys.md."""
    tools = "Read by `tools/`. A package's reader may have more (`RecDataset.config_keys`)."
    model = "Read by the model. A key that is none of these is refused."
    return (
        HEAD
        + TABLE.format(title="runner", text=tools, rows="\n".join(runner_rows()))
        + TABLE.format(title="hyper_parameters", text=model, rows="\n".join(hyper_rows()))
    )


if __name__ == "__main__":
    (ROOT / "docs" / "keys.md").write_text(page(), encoding="utf-8")
