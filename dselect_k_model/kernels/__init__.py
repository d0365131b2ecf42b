"""Our own kernels for training on a CPU: the convolutions of experts and bottoms, and mixtures of plain MLP experts.

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
        sources = [str(HERE / name) for name in ("cnn.cc", "mlp.cc")]
        cpp_extension.load(NAME, sources, extra_cxx_cflags=FLAGS, build_directory=folder)
        os.replace(os.path.join(folder, NAME, f"{NAME}.so"), path)


def chosen(name, key):
    """A kernel, if ``hyper_parameters.kernels`` asks for it: false, true or auto.

    Raises:
        ValueError: it is true, but they are not compiled.
    """
    if key and load():
        return globals()[name]
    if key is True:
        raise ValueError(
            f"hyper_parameters.kernels is true, but {library()} is missing. Run: python -m dselect_k_model.kernels "
            "(Paddle 3 and a C++ compiler are needed)"
        )
    return None


@functools.lru_cache
def load():
    """Register the kernels with Paddle. False: they are not compiled, or Paddle is too old."""
    path = library()
    if not SUPPORTED or not path.is_file():
        return False
    from paddle.utils import cpp_extension

    cpp_extension.load_op_meta_info_and_register_op(str(path))
    return True


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


def mlp_mixture(x, weights, tensors, layers, size):
    """A mixture of MLP experts with ReLU after each layer, and its gradients. An expert without weight is skipped.

    Args:
        x: float32 [B, F].
        weights: float32 [T, n].
        tensors: of each expert, of each layer, weight and bias.
        layers: of an expert.
        size: H, of an expert's output.
    Returns:
        float32 [T, B, H].
    """
    return paddle._C_ops._run_custom_op("dselect_k_mlps", [x, weights, *tensors], layers, size, THREADS)[0]
