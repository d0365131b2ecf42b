"""An exported model: a program cut down to its outputs, its weights, and a signature that says what is what.

rec_inference.json, .pdmodel   the program: .json where Paddle 3.x writes its own form, .pdmodel in legacy programs
rec_inference.pdiparams        the weights that the program uses
rec_inference.vocabulary.json  and the like: copies of the files that the reader encodes inputs by
signature.json                 the reader's items, which of them are inputs, the outputs in their order, the
                               tasks and which outputs and label are theirs; the SHA-256 of the files
"""

import collections
import logging
import os
import re

import numpy as np
import paddle
from paddle.base.data_feeder import convert_dtype
from paddle.base.proto import framework_pb2

from engine.checkpoints import compatibility, folders
from engine.errors import UserError, user_errors
from engine.graphs import programs
from engine.interface import offered
from engine.serving import signature
from engine.serving.signature import PREFIX

LOG = logging.getLogger("engine")
# outputs with a column for each class of a task, in a package that does not say which tasks it has
OF_TASK = re.compile(r"(logits|probabilities)(\d*)")

# A program with its feeds in the reader's order, what may be its inputs and outputs, name -> Variable, and
# the tasks that the package says it has, as ``StaticModel.export_tasks`` gives them, or None.
Built = collections.namedtuple("Built", "program feeds inputs outputs tasks")

# What is exported: the package's StaticModel and its config; its own program and feeds; the executor in whose
# scope the weights are; these weights, parameter name -> array; the files that the inputs are encoded by.
Source = collections.namedtuple("Source", "model config program feeds executor parameters encoding", defaults=[{}])


def write(folder, source, feed_names=(), fetch_names=()):
    """Export the outputs that are named, or all outputs of the tasks.

    A name is a key of the dict that the package's ``export_net`` returns or, failing that, a feed's
    name or a key of the dicts that ``build`` or ``infer_net`` return, in a program built again for
    inference. Failing that too, in a legacy program, it may be any variable of the graph's own
    program, as in PaddleRec.

    Args:
        folder: to write in.
        source: Source.
        feed_names: the exported model's inputs; empty: what its outputs need.
        fetch_names: its outputs; empty: the tasks' outputs.
    Raises:
        UserError: a name is none of these, or there is nothing to export.
    """
    built, names = _choose(source, feed_names, fetch_names)
    outputs = [built.outputs[name] for name in names]
    needed = _needed_feeds(built, outputs)
    inputs = list(feed_names) or needed
    missing = sorted(set(needed) - set(inputs))
    if missing:
        raise UserError(
            f"runner.save_inference_feed_varnames: an output of {', '.join(names)} needs {', '.join(missing)} too."
        )
    variables = [built.inputs[name] for name in inputs]
    path = os.path.join(folder, PREFIX)
    with folders.written_by_paddle(path, lambda: read_back(path, source)):
        paddle.static.save_inference_model(path, variables, outputs, source.executor, program=built.program)
    compatibility.copy_encoding(source.encoding, path + ".")
    _write_signature(folder, built, inputs, names, compatibility.digests(source.encoding))


def write_graph(graph, folder):
    """``write`` the network of a StaticGraph, with the weights that it has."""
    weights, settings = graph.parameters(), graph.settings
    source = Source(
        graph.model, graph.config, graph.program, graph.feeds, graph.executor, weights, graph.package.encoding
    )
    write(folder, source, settings.save_inference_feed_varnames, settings.save_inference_fetch_varnames)


def read_back(path, source):
    """Raise an error if the program cannot be read, or its weights are not the source's.

    The weights' size is looked at too: Paddle reads a file that is cut short without an error, and what is missing
    may be in memory from before.
    """
    with paddle.static.scope_guard(paddle.static.Scope()):
        program, _, _ = paddle.static.load_inference_model(path, source.executor)
        read = {n: np.asarray(x) for n, x in program.state_dict("all", paddle.static.global_scope()).items()}
    if read and os.path.getsize(path + ".pdiparams") < _size_of_file(read.values()):
        raise ValueError("the weights are cut short")
    for name in {*read} & {*source.parameters}:
        np.testing.assert_array_equal(read[name], source.parameters[name], name)


def _size_of_file(arrays):
    """Bytes that Paddle writes for some arrays: of each, versions and lengths, its dtype and shape, and its data."""
    descriptions = [framework_pb2.VarType.TensorDesc(data_type=0, dims=array.shape) for array in arrays]
    return sum(20 + told.ByteSize() + array.nbytes for told, array in zip(descriptions, arrays))


def _choose(source, feed_names, fetch_names):
    """(Built, output names): of the smallest program that has all the names asked for."""
    beyond = []
    for built in _inference_programs(source):
        names = list(fetch_names) or [
            name for task in _tasks(built, built.outputs) for name in task["outputs"].values()
        ]
        missing = _missing(built, feed_names, names)
        if names and not missing:
            if beyond:
                LOG.warning("export_net has no %s: infer_net's program is exported, whole", ", ".join(beyond))
            return built, names
        beyond = missing
    if not paddle.framework.in_pir_mode():
        variables = source.program.global_block().vars
        own = Built(source.program, source.feeds, variables, variables, None)
        if names and not _missing(own, feed_names, names):
            return own, names
    wrong = f"there is no {', '.join(missing)}" if missing else "none is named, and the package has no logits"
    raise UserError(
        f"runner.save_inference_…_varnames: {wrong}. "
        f"Inputs are {', '.join(built.inputs)}; outputs are {', '.join(built.outputs)}."
    )


def _missing(built, feed_names, fetch_names):
    known_in, known_out = map(str, built.inputs), map(str, built.outputs)
    return sorted({*map(str, feed_names)} - {*known_in}) + sorted({*map(str, fetch_names)} - {*known_out})


def _inference_programs(source):
    """What may be exported, one after the other; each shares the source's parameters by their names."""
    if offered(source.model, "export_net"):
        yield _build(source, lambda model, feeds: model.export_net(feeds, source.parameters))
    yield _build(source, _infer_net)


def _build(source, network):
    with programs.new_programs() as program, user_errors(source.config["yaml_path"]):
        model = type(source.model)(source.config)
        feeds = list(model.create_feeds(is_infer=True))
        outputs = network(model, feeds)
    inputs = {variable.name: variable for variable in feeds}
    tasks = model.export_tasks() if offered(model, "export_tasks") else None
    return Built(program, feeds, inputs, {**inputs, **outputs}, tasks)


def _infer_net(model, feeds):
    if not offered(model, "build"):
        return model.infer_net(feeds)
    fetches, _, outputs = model.build(feeds, is_infer=True)
    return {**fetches, **outputs}


def _needed_feeds(built, outputs):
    """Names of the feeds that the outputs depend on: what is left of them in a program cut down to the outputs."""
    program = paddle.static.normalize_program(built.program, [], outputs)
    if paddle.framework.in_pir_mode():
        read = {op.attrs()["name"] for op in program.global_block().ops if op.name() == "pd_op.data"}
    else:
        read = {name for block in program.blocks for op in block.ops for name in op.input_arg_names}
    return [variable.name for variable in built.feeds if variable.name in read]


def _write_signature(folder, built, inputs, names, encoding):
    feeds = [
        {"name": variable.name, "shape": list(variable.shape), "dtype": convert_dtype(variable.dtype)}
        for variable in built.feeds
    ]
    tasks = _tasks(built, names)
    of_tasks = [name for task in tasks for name in task["outputs"].values()]
    outputs = [
        {"name": name, "per_example": name in of_tasks or list(built.outputs[name].shape[:1]) == [-1]} for name in names
    ]
    facts = {"feeds": feeds, "inputs": inputs, "outputs": outputs, "tasks": tasks, "paddle": paddle.__version__}
    if encoding:
        facts["encoding"] = encoding
    signature.write(folder, facts)


def _tasks(built, names):
    """The tasks with an output among ``names``, each with just these outputs."""
    tasks = built.tasks if built.tasks is not None else _guessed_tasks(built)
    found = []
    for task in tasks:
        outputs = {part: name for part, name in task["outputs"].items() if name in names}
        if outputs:
            found.append({**task, "outputs": outputs})
    return found


def _guessed_tasks(built):
    """The tasks of a package that does not say which it has: by the names of its outputs."""
    tasks = {}
    for name, variable in built.outputs.items():
        match, shape = OF_TASK.fullmatch(name), list(variable.shape)
        if match and len(shape) == 2 and shape[1] != 1:  # a single column has no classes to choose from
            tasks.setdefault(match.group(2), {})[match.group(1)] = name
    needed = _needed_feeds(built, [built.outputs[name] for task in tasks.values() for name in task.values()])
    labels = [v.name for v in built.feeds if v.name not in needed and _may_be_label(v)]
    labels = labels if len(labels) == len(tasks) else [None] * len(tasks)
    return [signature.of_classes(suffix, outputs, label) for (suffix, outputs), label in zip(tasks.items(), labels)]


def _may_be_label(variable):
    return convert_dtype(variable.dtype).startswith("int") and list(variable.shape[1:]) in ([], [1])
