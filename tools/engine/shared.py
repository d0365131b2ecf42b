"""The modules that the tools share with the model's package. Nothing else in the engine imports from that package."""

import os
import sys

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _forget():
    """Take the package out of ``sys.modules``: what its name means for a run is decided in package.py."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "dselect_k_model"}


_others = _forget()
sys.path.insert(0, PROJECT)
try:
    from dselect_k_model import array_files, config_key, output_files
finally:
    sys.path.remove(PROJECT)
    _forget()
    sys.modules.update(_others)

__all__ = ["PROJECT", "array_files", "config_key", "output_files"]
