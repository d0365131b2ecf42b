"""The modules that the tools share with the model's package. Nothing else in the engine imports from that package."""

import importlib
import os
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def load(name):
    """Import a module of the model's package for the tools. ``processes`` imports paddle, the others do not."""
    others = _forget()
    sys.path.insert(0, PROJECT)
    try:
        return importlib.import_module(f"dselect_k_model.{name}")
    finally:
        sys.path.remove(PROJECT)
        _forget()
        sys.modules.update(others)


def _forget():
    """Take the package out of ``sys.modules``: what its name means for a run is decided in package.py."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "dselect_k_model"}


array_files, config_key, output_files = load("array_files"), load("config_key"), load("output_files")

__all__ = ["PROJECT", "array_files", "config_key", "load", "output_files"]
