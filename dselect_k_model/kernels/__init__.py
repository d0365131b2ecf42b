"""Our own kernels for the convolutions of experts and bottoms, in training on a CPU.

They are compiled once for a machine and a release of Paddle, by ``python -m dselect_k_model.kernels``
(``make kernels``), with a C++ compiler. Without them the same numbers come from Paddle's layers, to rounding.
"""

import functools
import hashlib
import os
import pathlib
import platform
import tempfile

import paddle

HERE = pathlib.Path(__file__).resolve().parent
NAME = "dselect_k_kernels"
SUPPORTED = not paddle.__version__.startswith("2.")  # its way to call an operator is another
FLAGS = ["-O3", "-march=native", *["-mprefer-vector-width=512"] * (platform.machine() in ("x86_64", "AMD64"))]
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NORMS = ("none", "batch", "group")  # numbered as in blocks.h


def library():
    """The compiled library's path, whether or not it is there: of these sources, this Paddle and this processor."""
    identity = [paddle.__version__, platform.machine(), _processor_features(), *FLAGS]
    identity += [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.[ch]*"))]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    return HERE / "build" / f"{digest}.so"


def _processor_features():
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def build():
    """Compile the library.

    Raises:
        Exception: of the compiler or of Paddle.
    """
    from paddle.utils import cpp_extension

    path = library()
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # a library that is there is whole
        cpp_extension.load(NAME, [str(HERE / "cnn.cc")], extra_cxx_cflags=FLAGS, build_directory=folder)
        os.replace(os.path.join(folder, NAME, f"{NAME}.so"), path)


@functools.lru_cache
def chosen(key):
    """The ``kernel`` that ``hyper_parameters.kernels`` asks for: false, true or auto.

    Raises:
        ValueError: it is true, but there is none.
    """
    kernel = load() if key else None
    if key is True and kernel is None:
        raise ValueError(
            f"hyper_parameters.kernels is true, but {library()} is missing. Run: python -m dselect_k_model.kernels "
            "(Paddle 3 and a C++ compiler are needed)"
        )
    return kernel


def load():
    """The ``kernel`` for ``net.CNN`` and ``net.CNNExpert``; None if it is not compiled, or Paddle is too old."""
    path = library()
    if not SUPPORTED or not path.is_file():
        return None
    from paddle.utils import cpp_extension

    cpp_extension.load_op_meta_info_and_register_op(str(path))
    return cnn_blocks


def cnn_blocks(image, tensors, norm, size):
    """Two blocks of convolution, norm, max-pooling and ReLU, and their gradients.

    Args:
        image: float32 [B, channels, height, width], without gradient.
        tensors: of both blocks, those that their norm has, in this order: weight; without batch norm bias; scale,
            shift; with batch norm the running mean and variance, which move.
        norm: one of ``NORMS``.
        size: number of features of an image.
    Returns:
        float32 [B, size].
    """
    return paddle._C_ops._run_custom_op("dselect_k_cnn", image, tensors, NORMS.index(norm), size, THREADS)[0]
