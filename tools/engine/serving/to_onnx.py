"""An exported model in ONNX as well. ``paddle2onnx`` is an extra, imported only if asked for."""

import json
import os

import paddle

from engine.errors import UserError
from engine.serving.signature import PREFIX, SIGNATURE


def write(folder):
    """Convert the exported model of ``folder`` into an ONNX file beside it, its outputs under our names.

    Raises:
        UserError: ``paddle2onnx`` is missing, not made for this Paddle, or cannot convert the model.
    """
    files = [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(PREFIX)]
    program = next(path for path in files if not path.endswith(".pdiparams"))
    try:
        import onnx
        import paddle2onnx

        # into memory: asked for a file, it would install tools by pip on its way
        content = paddle2onnx.export(program, os.path.join(folder, PREFIX + ".pdiparams"))
        model = onnx.load_model_from_string(content)
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
    onnx.save(model, os.path.join(folder, PREFIX + ".onnx"))


def _name_outputs(model, folder):
    with open(os.path.join(folder, SIGNATURE), encoding="utf-8") as file:
        names = [output["name"] for output in json.load(file)["outputs"]]
    ours = {value.name: name for value, name in zip(model.graph.output, names)}
    for value in model.graph.output:
        value.name = ours[value.name]
    for node in model.graph.node:
        node.output[:] = [ours.get(name, name) for name in node.output]
        node.input[:] = [ours.get(name, name) for name in node.input]
