"""``runner.use_inference``: an exported model beside the weights of an epoch."""

import os

import paddle

from engine.errors import UserError

PREFIX = "rec_inference"


def write(folder, graph):
    """Export what ``save_inference_feed_varnames`` and ``…fetch_varnames`` name.

    A name is a feed's, a key of the dict that ``infer_net`` returns, or a key of the package's dict
    ``export_vars``, in a program built anew for inference. Failing that, in a legacy program, it may
    be any variable of the training program, as in PaddleRec.

    Raises:
        UserError: a name is none of these.
    """
    settings = graph.settings
    feed_names, fetch_names = settings.save_inference_feed_varnames, settings.save_inference_fetch_varnames
    program, inputs, outputs = _inference_program(graph)
    unknown = [name for name in feed_names if name not in inputs] + [n for n in fetch_names if n not in outputs]
    if unknown:
        program, inputs, outputs = graph.program, *_training_variables(graph, unknown, inputs, outputs)
    paddle.static.save_inference_model(
        os.path.join(folder, PREFIX),
        [inputs[name] for name in feed_names],
        [outputs[name] for name in fetch_names],
        graph.executor,
        program=program,
    )


def _inference_program(graph):
    """(program, feeds by name, possible outputs by name), sharing the training program's parameters by name."""
    program = paddle.static.Program()
    with paddle.utils.unique_name.guard(), paddle.static.program_guard(program, paddle.static.Program()):
        model = type(graph.model)(graph.config)
        feeds = model.create_feeds(is_infer=True)
        fetches = model.infer_net(feeds)
    inputs = {variable.name: variable for variable in feeds}
    return program, inputs, {**inputs, **fetches, **getattr(model, "export_vars", {})}


def _training_variables(graph, unknown, inputs, outputs):
    variables = {} if paddle.framework.in_pir_mode() else graph.program.global_block().vars
    missing = [name for name in unknown if name not in variables]
    if missing:
        raise UserError(
            f"runner.save_inference_…_varnames: there is no {', '.join(missing)}. "
            f"Inputs are {', '.join(inputs)}; outputs are {', '.join(outputs)}."
        )
    return variables, variables
