"""Paths, and a clean graph mode for each test."""

import pathlib
import sys

import numpy as np
import paddle
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("", "tools", "tests", "tests/stress", "data", "benchmarks")]


@pytest.fixture(autouse=True)
def _eager_by_default():
    paddle.disable_static()
    yield
    paddle.disable_static()


@pytest.fixture
def rng():
    return np.random.RandomState(7)
