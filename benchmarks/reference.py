"""Writes a case with the dense network's answers: python benchmarks/reference.py SPEC PATH

SPEC is JSON with the other arguments of ``write``.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import cases  # noqa: E402  (the path is set above)
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import variants  # noqa: E402

import net  # noqa: E402
from support import ways  # noqa: E402

SETTLED_LOGIT = 0.8  # outside the band of the smooth-step function, which is 1 wide
PER_EXAMPLE_LOGIT = 1e4  # a typical one: in a whole batch hardly any lies within the band


def write(path, hyper, batch, settled):
    """Write a case with a batch of noise.

    The cost of a step does not depend on the inputs, but the choice of a per-example gate does.

    Args:
        path: of the file.
        hyper: see ``cases.Case``.
        batch: number of examples.
        settled: what the gates have settled on: for shared gates a list of experts for each task; "per example" for
            per-example gates that choose different experts for each example; None: they have not settled.
    """
    rng = np.random.RandomState(0)
    with variants.dense_network():
        run = ways.start("eager", ways.config(**hyper, kernels=False))
        parameters = run.wrapper.hyper
        examples = _noise(parameters, batch, rng)
        run.set(_gate_values(run, settled, rng))
        state = run.state()
        weights = {key: state[name] for key, name in run.names.items()}
        active = _active_experts(run, examples)
        logits = run.outputs(examples)
        losses = [run.step(examples)[0] for _ in range(2)]
    inputs, labels = parameters.split(examples)
    cases.write(path, cases.Case(hyper, list(inputs), list(labels), weights, logits, losses, active))


def _noise(parameters, size, rng):
    draw = {"image": rng.rand, "dense": rng.randn}
    inputs = [
        rng.randint(0, parameters.input_vocabulary_sizes, [size, *shape])
        if name == "ids"
        else draw[name](size, *shape).astype("float32")
        for name, shape, _ in parameters.inputs()
    ]
    kinds = [task.kind for task in parameters.task_list]
    labels = [rng.randint(0, max(2, kind.out_size), size).astype(kind.label_dtype or "float32") for kind in kinds]
    return [*inputs, *labels]


def _gate_values(run, settled, rng):
    if settled is None:
        return {}
    hyper = run.wrapper.hyper
    digits = net.digit_num(hyper.expert_num)
    if settled == "per example":
        return _per_example_gate_values(run, hyper.top_k * digits, rng)
    values = {}
    for task, experts in enumerate(settled):
        name = run.names[f"gates.{task}.selector_logits"]
        values[name] = ways.gate_values(run, ways.code_logits(experts, digits, SETTLED_LOGIT))[name]
    return values


def _per_example_gate_values(run, size, rng):
    """Weights of per-example gates, equal for all tasks, whose selector logits vary from example to example."""
    weight = rng.randn(run.net.gates[0].feature_size, size)
    weight -= weight.mean(axis=0)  # so that an image's mean brightness decides nothing
    values = {}
    for key, tensor in run.net.state_dict().items():
        if key.endswith("selector_weight"):
            values[tensor.name] = (PER_EXAMPLE_LOGIT * weight).astype("float32")
        elif key.endswith(("selector_logits", "mixing_weight", "mixing_logits")):
            values[tensor.name] = np.zeros(tensor.shape, "float32")
    return values


def _active_experts(run, batch):
    run.net.eval()  # otherwise batch norm would move its statistics
    inputs, _ = run.wrapper.hyper.split([paddle.to_tensor(item) for item in batch])
    with paddle.no_grad():
        _, weights, _ = run.net(inputs, details=True)
    return (net.greatest_weights(weights).numpy() > 0).nonzero()[0].tolist()


if __name__ == "__main__":
    write(sys.argv[2], **json.loads(sys.argv[1]))
