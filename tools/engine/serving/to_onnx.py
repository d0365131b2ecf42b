"""An exported model in ONNX as well. ``paddle2onnx`` is an extra, imported only if asked for."""

import json
import os
import subprocess
import sys

import paddle

from engine.errors import UserError
from engine.serving.signature import PREFIX, SIGNATURE

# It runs in a process of its own, because paddle2onnx aborts its process at an operator that it does not know. It
# converts into memory: asked for a file, paddle2onnx would install tools by pip on its way.
CONVERTER = """
import sys, paddle2onnx
content = paddle2onnx.export(*sys.argv[1:3])
with open(sys.argv[3], "wb") as file:
    file.write(content)
"""


def write(folder):
    """Convert the exported model of ``folder`` into an ONNX file beside it, its outputs under our names.

    Raises:
        UserError: ``paddle2onnx`` is missing, not made for this Paddle, or cannot convert the model.
    """
    files = [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(PREFIX)]
    program = next(path for path in files if not path.endswith(".pdiparams"))
    try:
        import onnx
        import paddle2onnx  # noqa: F401 (only whether it is there)

        path = os.path.join(folder, PREFIX + ".onnx")
        _convert(program, os.path.join(folder, PREFIX + ".pdiparams"), path)
        model = onnx.load_model(path)
        onnx.checker.check_model(model)
    except ImportError as error:
        raise UserError(
            f"runner.export_format is onnx, but paddle2onnx cannot be imported ({error}). "
            "Try: pip install paddle2onnx onnx (paddle2onnx 2 is for Paddle 3, paddle2onnx 1 for Paddle 2)."
        ) from error
    except Exception as error:  # a converter's failure comes as nearly anything, and its log says more
        raise UserError(
            f"runner.export_format is onnx, but paddle2onnx cannot convert this model under Paddle "
            f"{paddle.__version__} ({type(error).__name__}: {error}). Set export_format to paddle."
        ) from error
    _name_outputs(model, folder)
    onnx.save(model, path)


def _convert(*paths):
    done = subprocess.run([sys.executable, "-c", CONVERTER, *paths], capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = [line for line in lines if "[ERROR]" in line or "Oops" in line] or lines[-1:]
        raise RuntimeError("; ".join(told)[:500])


def _name_outputs(model, folder):
    with open(os.path.join(folder, SIGNATURE), encoding="utf-8") as file:
        names = [output["name"] for output in json.load(file)["outputs"]]
    ours = {value.name: name for value, name in zip(model.graph.output, names)}
    for value in model.graph.output:
        value.name = ours[value.name]
    for node in model.graph.node:
        node.output[:] = [ours.get(name, name) for name in node.output]
        node.input[:] = [ours.get(name, name) for name in node.input]
