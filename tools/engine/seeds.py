"""The random states of paddle, numpy and random: seeded together, saved and restored together."""

import contextlib
import random

import numpy as np
import paddle


def set_seeds(*numbers):
    """Seed paddle, numpy and random with one or more whole numbers."""
    seed = numbers[0] if len(numbers) == 1 else int(np.random.SeedSequence(numbers).generate_state(1)[0])
    paddle.seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def random_states_kept():
    """Restore the random states of paddle, numpy and random after the block."""
    on_cpu = paddle.base.core.default_cpu_generator()
    paddles, of_cpu = paddle.get_rng_state(), on_cpu.get_state()  # the device's, and the CPU's, which it uses as well
    numpys, pythons = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        paddle.set_rng_state(paddles)
        on_cpu.set_state(of_cpu)
        np.random.set_state(numpys)
        random.setstate(pythons)
