"""Paths; a clean graph mode and the same seed for each test."""

import pathlib
import sys
import traceback

import numpy as np
import paddle
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("", "tools", "tests", "tests/stress", "data", "docs", "benchmarks", "examples/census", "experiments")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]


# Paddle takes down the Python stack at each operation of a program, which from within pytest is a third of the time
# to build one. The nearest frames will do.
EXTRACT_STACK = traceback.extract_stack
traceback.extract_stack = lambda f=None, limit=4: EXTRACT_STACK(f or sys._getframe(1), limit)


@pytest.fixture(autouse=True)
def _eager_and_seeded():
    """Without a seed, a network's initial values, and so a failure, could not be had again."""
    paddle.disable_static()
    paddle.seed(7)
    yield
    paddle.disable_static()


@pytest.fixture
def rng():
    return np.random.RandomState(7)
