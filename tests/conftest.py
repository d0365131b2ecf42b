"""Paths, and a clean graph mode for each test."""

import pathlib
import sys

import numpy as np
import paddle
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("", "tools", "tests", "tests/stress", "data", "docs", "benchmarks")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]


@pytest.fixture(autouse=True)
def _eager_by_default():
    paddle.disable_static()
    yield
    paddle.disable_static()


@pytest.fixture
def rng():
    return np.random.RandomState(7)
