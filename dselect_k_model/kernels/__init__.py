"""Our own kernels for training on a CPU: inputs, gates, experts, towers, and the step of the optimizer.

They are compiled once for a machine and a release of Paddle, by ``python -m dselect_k_model.kernels``
(``make kernels``), with a C++ compiler. Without them the same numbers come from Paddle's layers, to rounding.
"""

import functools
import hashlib
import itertools
import os
import pathlib
import platform
import re
import tempfile

import paddle

from dselect_k_model import processes

HERE = pathlib.Path(__file__).resolve().parent
NAME = "dselect_k_kernels"
MARK = "_dselect_k_kernels"  # attribute of paddle: the file whose operators this process has
# from here on an operator of one's own may give a tensor without rows
SUPPORTED = [int(part) for part in re.findall(r"\d+", paddle.__version__)[:3]] >= [3, 1, 1]
# -fno-math-errno and -fno-trapping-math let the compiler compute square roots by vectors; they change no result
FLAGS = ["-march=native", "-fno-math-errno", "-fno-trapping-math", "-O3"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")
THREADS = processes.cores()
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
        sources = [str(HERE / name) for name in ("gates.cc", "table.cc", "cnn.cc", "mlp.cc", "update.cc")]
        cpp_extension.load(NAME, sources, extra_cxx_cflags=FLAGS, build_directory=folder)
        os.replace(os.path.join(folder, NAME, f"{NAME}.so"), path)


def chosen(key):
    """The kernels if ``hyper_parameters.kernels`` asks for them, which is false, true or auto; otherwise None.

    Raises:
        ValueError: it is true, but there are none.
    """
    if key and load():
        return Kernels()
    if key is True:
        raise ValueError(f"hyper_parameters.kernels is true, but {why_none()}")
    return None


def why_none():
    """Why there are no kernels, and what to do: the end of a sentence."""
    if library().is_file() and SUPPORTED:
        return "this process has the operators of another copy of the package. Use one copy in a process"
    return (
        f"{library()} is missing. Run: python -m dselect_k_model.kernels "
        "(Paddle 3.1.1 or later and a C++ compiler are needed)"
    )


@functools.lru_cache
def load():
    """Register the kernels with Paddle. False: they are not compiled, or Paddle is too old."""
    path = library()
    if not SUPPORTED or not path.is_file():
        return False
    # A process has one set of operators, and ends if they are registered again, as by a second copy of this package.
    registered = getattr(paddle, MARK, None)
    if registered is None:
        from paddle.utils import cpp_extension

        cpp_extension.load_op_meta_info_and_register_op(str(path))
        setattr(paddle, MARK, path.name)
    return getattr(paddle, MARK) == path.name


def gates(tensors, experts, selectors, gamma):
    """DSelect-k gates that are the same for every example: see ``net.DSelectKGate``.

    Args:
        tensors: of each gate, selector logits [k m] and mixing logits [k].
        experts: n, from 2.
        selectors: k.
        gamma: width of the smooth-step's band.
    Returns:
        (weights [T, n], penalties [2]): the sums over the gates of entropy and reachability.
    """
    return _run("dselect_k_gates", tensors, experts, selectors, 1.0 / gamma)


def join(dense, ids, embedding, ends):
    """Dense features and embeddings side by side: see ``net.TableInput``.

    Args:
        dense: float32 [B, D], without gradient.
        ids: int64 [B, number of fields], each from 0 to its vocabulary's size - 1.
        embedding: float32 [sum of the vocabularies' sizes or more, E], a field's rows after those of the one before.
        ends: by field, the number of rows up to its last one.
    Returns:
        float32 [B, D + number of fields * E].
    """
    return _run("dselect_k_join", dense, ids, embedding, ends, THREADS)[0]


def cnns(image, weights, tensors, norm, size):
    """The two blocks of convolution, norm, max-pooling and ReLU of each expert in use.

    Args:
        image: float32 [B, channels, height, width], without gradient.
        weights: float32 [T, n]; an expert is in use if any of its weights is > 0. It gets no gradient from here.
        tensors: of each expert, of both blocks, those that their norm has, in this order: weight; without batch norm
            bias; scale, shift; with batch norm the running mean and variance, which move.
        norm: one of ``NORMS``.
        size: number of features of an image.
    Returns:
        float32 [experts in use, B, size].
    """
    return _run("dselect_k_cnns", image, weights.detach(), tensors, NORMS.index(norm), size, THREADS)[0]


def mlps(x, weights, experts, size, towers):
    """A mixture of MLP experts with ReLU after each layer, and towers with ReLU between layers.

    Args:
        x: float32 [B, F], or [experts in use, B, F].
        weights: float32 [T, n]. An expert without weight is skipped.
        experts: of each, a list of its layers' weights and biases, of the same shapes.
        size: H, of an expert's output.
        towers: of each task, such a list and the size of its output; or empty.
    Returns:
        By task float32 [B, size of its tower's output], or the mixtures [B, H].
    """
    tensors = [x, weights, *itertools.chain(*experts), *itertools.chain(*[parameters for parameters, _ in towers])]
    layers, tower_layers = len(experts[0]) // 2, [len(parameters) // 2 for parameters, _ in towers]
    sizes = [width for _, width in towers] or [size] * weights.shape[0]
    widest = max(sizes)
    outputs = _run("dselect_k_mlps", tensors, layers, size, tower_layers, widest, THREADS)[0]
    return [output if width == widest else output[:, :width] for output, width in zip(paddle.unbind(outputs), sizes)]


def _run(name, *arguments):
    return paddle._C_ops._run_custom_op(name, *arguments)


def update(tensors, rate, method, constants, factors, decays):
    """One step of an optimizer for all parameters, in place: see ``optimizers``.

    Returns:
        int32 [number of parameters], 1 if a parameter is finite after the step.
    """
    return _run("dselect_k_update", tensors, rate, method, constants, factors, decays, THREADS)[0]


class Kernels:
    """What ``net.py`` takes: an object that can be copied and pickled with a network."""

    gates, join, cnns, mlps = staticmethod(gates), staticmethod(join), staticmethod(cnns), staticmethod(mlps)
