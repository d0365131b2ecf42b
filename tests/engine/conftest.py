"""The log of the tools where caplog sees it; a toy package."""

import logging
import pathlib
import shutil

import pytest

from support.toolbox import run_here

TOY = pathlib.Path(__file__).parent / "toy"


@pytest.fixture(autouse=True)
def _log_reaches_caplog(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("engine"), "propagate", True)
    caplog.set_level(logging.INFO, "engine")


@pytest.fixture
def toy(tmp_path):
    """A function that runs a tool on a copy of the toy, (tool, override ...), in tmp_path, and gives its process."""
    folder = shutil.copytree(TOY, tmp_path / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    return lambda name, *overrides: run_here(name, folder / "config.yaml", *overrides, cwd=tmp_path)
