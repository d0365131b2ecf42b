"""Sets the device of the process."""

import logging
import os

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
