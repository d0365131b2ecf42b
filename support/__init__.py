"""What tests, stress runs and benchmarks share: networks to start from, ways to run them, tools, oracles, seeds."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
