"""Paths; a clean graph mode and the same seed for each test."""

import gc
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("", "tools", "tests", "tests/stress", "data", "docs", "benchmarks", "examples/census", "experiments")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]


def pytest_collection_finish():
    """Make the tests of this process faster. (Not at the top: the process that hands out the tests needs no Paddle.)

    What is there before the first test stays; the garbage collector need not look through it again, nor so often.
    """
    import building  # noqa: F401

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def _eager_and_seeded():
    """Without a seed, a network's initial values, and so a failure, could not be had again."""
    import paddle

    paddle.disable_static()
    paddle.seed(7)
    yield
    paddle.disable_static()


@pytest.fixture
def rng():
    return np.random.RandomState(7)
