"""Paths; a clean graph mode and the same seed for each test."""

import gc
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("", "tools", "tests/stress", "data", "scripts", "benchmarks", "examples/census", "experiments")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]

from support import seeds  # noqa: E402  (found by the line above)


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=seeds.DEFAULT, help="of all that tests draw; see support/seeds.py")


def pytest_configure(config):
    seeds.set_option(config.option.seed)


def pytest_report_header(config):
    return f"seed: {config.option.seed}"


def pytest_collection_finish():
    """Spare the garbage collector what is imported before the first test, and have it run less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def _eager_and_seeded():
    """Without a seed, a network's initial values, and so a failure, could not be had again."""
    import paddle

    paddle.disable_static()
    paddle.seed(seeds.seeded(7))
    yield
    paddle.disable_static()


@pytest.fixture
def rng():
    return seeds.random_state(7)


@pytest.fixture
def float64():
    """Networks and batches in float64: see support/rounding.py for why tests of equality are."""
    import paddle

    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype("float32")
