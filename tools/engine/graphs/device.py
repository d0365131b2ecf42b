"""Sets the device and the random seeds of the process."""

import contextlib
import logging
import os
import random

import numpy as np
import paddle

from engine.errors import UserError

LOG = logging.getLogger("engine")


def set_device(settings):
    """Set Paddle's device as ``use_xpu``, ``use_npu`` and ``use_gpu`` say.

    Returns:
        Paddle's place.
    Raises:
        UserError: the device asked for is not available.
    """
    name = _device_name(settings)
    try:
        place = paddle.set_device(name)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the device {name} cannot be used: {error} Set runner.use_{name.split(':')[0]} to false."
        ) from error
    LOG.info("device: %s", name)
    return place


def _device_name(settings):
    for kind in ("xpu", "npu"):
        if getattr(settings, f"use_{kind}"):
            return f"{kind}:{os.environ.get(f'FLAGS_selected_{kind}s', '0')}"
    gpu_found = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if settings.use_gpu is True and not gpu_found:
        raise UserError(
            "runner.use_gpu is true, but Paddle finds no GPU. Set it to auto or false to run on "
            "the CPU, or install paddlepaddle-gpu if there is a GPU."
        )
    return "gpu" if settings.use_gpu and gpu_found else "cpu"


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
