"""DSelect-k multi-gate mixture of experts: all the mathematics, for dynamic and static graph alike.

Read from top to bottom: hyper-parameters, the gate, sparse execution of the experts, the network,
the loss, the optimizer. The two wrappers (``dygraph_model.py``, ``static_model.py``) only call
what stands here.

Sources: Hazimeh et al., *DSelect-k*, NeurIPS 2021 (arXiv 2106.03760) for the gate and its
regularisers; Hazimeh et al., *The Tree Ensemble Layer*, ICML 2020 (arXiv 2002.07772) for the
smooth-step; Ma et al., *Multi-gate Mixture-of-Experts*, KDD 2018, for one gate per task.

Shapes in comments: B batch, n experts, k selectors, m binary digits, T tasks, H ``expert_size``.

On paddlepaddle 3.x the legacy program mode (``FLAGS_enable_pir_api=0``, which PaddleRec's tools
set) no longer builds ``paddle.sum``, ``log``, ``cos``, ``maximum`` and others, so this file does
with what every mode builds: operators, ``clip``, ``max``, ``einsum``, ``@``, ``cross_entropy``.
"""

import dataclasses
import difflib
import logging
import math
import re

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

IMAGE_SIZE = 36  # pixels a side, of the Multi-MNIST images
GROUP_SIZE = 5  # channels that group norm takes together
NETWORK_KEYS = "gate task_num class_num expert_num expert_norm top_k gamma expert_size tower_size".split()
LOG = logging.getLogger("dselect_k")


# ---------------------------------------------------------------------------- hyper-parameters


def _key(default, kind, meaning, low=None, above=None, high=None, choices=None):
    """One ``hyper_parameters`` key: its default, type and range. ``low`` and ``high`` are allowed, ``above`` is not."""
    return dataclasses.field(
        default=default,
        metadata={"kind": kind, "meaning": meaning, "low": low, "above": above, "high": high, "choices": choices},
    )


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """Every ``hyper_parameters.*`` key of the config, checked. A field ``optimizer_x`` is the key ``optimizer.x``."""

    gate: str = _key(
        "dselect_k",
        str,
        "kind of gate: dselect_k has free parameters, the same for "
        "every example; dselect_k_per_example computes them from the image",
        choices=("dselect_k", "dselect_k_per_example"),
    )
    task_num: int = _key(2, int, "number of tasks, each with a gate and a tower of its own", low=1, high=64)
    class_num: int = _key(10, int, "number of classes of each task", low=2, high=65536)
    expert_num: int = _key(8, int, "number of experts, shared by all tasks", low=1, high=1024)
    expert_norm: str = _key(
        "batch",
        str,
        "what follows an expert's convolutions: batch norm, group norm, or none (the paper's); with the latter two "
        "a per-example gate's experts run on just their own examples in training too",
        choices=("batch", "group", "none"),
    )
    top_k: int = _key(2, int, "selectors of each gate: at most so many experts for a task", low=1, high=1024)
    gamma: float = _key(1.0, float, "width of the smooth-step's band", above=0)
    expert_size: int = _key(50, int, "width of an expert's output", low=1, high=65536)
    tower_size: int = _key(50, int, "width of a tower's hidden layers", low=1, high=65536)
    task_weights: tuple = _key((), tuple, "weight of each task in the loss; empty: 1 for each")
    entropy_weight: float = _key(0.1, float, "strength of the pull of each selector to one expert", low=0)
    entropy_schedule: str = _key(
        "constant",
        str,
        "how that strength grows from 0 over entropy_ramp_steps",
        choices=("constant", "linear", "cosine"),
    )
    entropy_ramp_steps: int = _key(1000, int, "training steps until entropy_weight is reached", low=1, high=1000000)
    optimizer_class: str = _key("adam", str, "which optimizer", choices=("adam", "adamw", "sgd"))
    optimizer_learning_rate: float = _key(0.001, float, "the rate; with a schedule, its highest", above=0)
    optimizer_schedule: str = _key(
        "constant", str, "course of the rate over the whole training", choices=("constant", "cosine", "one_cycle")
    )
    optimizer_warmup_steps: int = _key(0, int, "training steps over which the rate rises from 0", low=0)
    optimizer_gate_learning_rate_factor: float = _key(1.0, float, "the gates' rate over the others'", above=0)
    optimizer_weight_decay: float = _key(
        0.0, float, "L2 penalty (adam, sgd) or decoupled decay (adamw) of all but the gates", low=0
    )
    optimizer_momentum: float = _key(0.9, float, "momentum of sgd", low=0)
    optimizer_clip_norm: float = _key(0.0, float, "greatest norm of all gradients together; 0: no limit", low=0)

    @classmethod
    def from_config(cls, config):
        """Read the flat config dict of PaddleRec's tools.

        Args:
            config: dict of dotted keys; all that do not begin with ``hyper_parameters.`` are skipped.
        Returns:
            HyperParameters. Logs one line where a config written for PaddleRec's DSelect-k is read otherwise.
        Raises:
            ValueError: a key is unknown, a value has the wrong type or is out of range.
        """
        prefix = "hyper_parameters."
        given = {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix)}
        given = _translate_paddlerec(given)
        fields = {_dotted(field)[len(prefix) :]: field for field in dataclasses.fields(cls)}
        for key in given:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                raise ValueError(
                    f"{prefix}{key} is not a key of this model"
                    + (f"; did you mean {prefix}{near[0]}?" if near else ".")
                    + f" It has: {', '.join(sorted(fields))}."
                )
        values = {f.name: _checked(prefix + key, given[key], f.metadata) for key, f in fields.items() if key in given}
        return cls(**values)._consistent()

    @classmethod
    def defaults(cls):
        """Every key of this model, dotted as in a config, with its default."""
        return {_dotted(field): field.default for field in dataclasses.fields(cls)}

    def _consistent(self):
        if self.top_k > self.expert_num:
            raise ValueError(
                f"hyper_parameters.top_k is {self.top_k}, but there are only {self.expert_num} experts "
                f"(expert_num). Set top_k to a whole number from 1 to {self.expert_num}."
            )
        if self.task_weights and len(self.task_weights) != self.task_num:
            raise ValueError(
                f"hyper_parameters.task_weights has {len(self.task_weights)} numbers, but there are "
                f"{self.task_num} tasks (task_num). Give one for each task, or an empty list."
            )
        if self.optimizer_schedule == "one_cycle" and self.optimizer_warmup_steps:
            raise ValueError(
                f"hyper_parameters.optimizer.warmup_steps is {self.optimizer_warmup_steps}, but the "
                "one_cycle schedule has a warm-up of its own. Set it to 0, or use another schedule."
            )
        return self


def network_config(config):
    """The keys that decide what the network computes, and their values in force: dotted key -> value.

    A save fits any config that agrees in these. The other keys shape the training alone.

    Args:
        config: flat config dict, of this run or of a save.
    Raises:
        ValueError: as ``HyperParameters.from_config``.
    """
    hyper = HyperParameters.from_config(config)
    return {f"hyper_parameters.{name}": getattr(hyper, name) for name in NETWORK_KEYS}


def _dotted(field):
    return "hyper_parameters." + field.name.replace("optimizer_", "optimizer.")


def _checked(key, value, rule):
    """``value`` as the type that ``rule`` asks for, or a ValueError that names ``key``."""

    def wrong(wanted):
        return ValueError(f"{key} is {value!r}, but must be {wanted}: {rule['meaning']}.")

    kind = rule["kind"]
    if kind is str:
        text = str(value).lower()
        if text not in rule["choices"]:
            raise wrong("one of " + ", ".join(rule["choices"]))
        return text
    if kind is tuple:
        numbers = [_number(item) for item in value] if isinstance(value, (list, tuple)) else [None]
        if any(x is None or x < 0 for x in numbers) or (numbers and not any(numbers)):
            raise wrong("a list of numbers >= 0, not all of them 0")
        return tuple(numbers)
    low, above, high = rule["low"], rule["above"], rule["high"]
    wanted = ("a whole number" if kind is int else "a number") + (f" > {above}" if low is None else f" >= {low}")
    wanted += f" and <= {high}" if high is not None else ""
    number = _number(value)
    if number is None or (low is not None and number < low) or (above is not None and number <= above):
        raise wrong(wanted)
    if high is not None and number > high:
        raise wrong(wanted)
    if kind is int and number != int(number):
        raise wrong(wanted)
    return kind(number)


def _number(value):
    """A finite float, or None. Takes text too: YAML reads ``1e-3`` as text, and so do PaddleRec's overrides."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _translate_paddlerec(given):
    """Read the keys of a config written for PaddleRec's DSelect-k, and say once what is read otherwise."""
    notes = []
    given = dict(given)
    if "gate_num" in given:
        given.setdefault("task_num", given["gate_num"])
        del given["gate_num"]
        notes.append("gate_num is read as task_num (each task has a gate of its own)")
    for key in ("feature_size", "optimizer.strategy"):
        if key in given:
            del given[key]
            notes.append(f"{key} means nothing here and is left out")
    if notes:
        if "entropy_weight" not in given:
            notes.append("the gates have an entropy regulariser (set entropy_weight: 0 for none)")
        LOG.warning(
            "this config was written for PaddleRec's DSelect-k: %s; softmax is applied once, in the loss.",
            "; ".join(notes),
        )
    return given


# ------------------------------------------------------------------------------------- the gate


def smooth_step(t, gamma=1.0):
    """Rise from exactly 0 to exactly 1 over a band of width ``gamma`` around 0.

    S(t) = u^2 (3 - 2u) with u = clip(t / gamma + 1/2, 0, 1). This is the smooth-step
    -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 of Hazimeh et al. 2020 (arXiv 2002.07772), factored
    so that in float32 S is 0 only where its slope is 0 too. For 1 - S(t) use S(-t), likewise.

    Args:
        t: selector logits, float32 or float64, any shape, in the unit of ``gamma``.
        gamma: width of the band, a Python number > 0, fixed when a graph is built.
    Returns:
        Tensor shaped like ``t``, in [0, 1]: 0 for t <= -gamma/2, 1 for t >= gamma/2.
    Raises:
        ValueError: ``gamma`` is not > 0.
    """
    if not gamma > 0:  # written so that nan fails too
        raise ValueError(f"gamma is {gamma}, but must be > 0: it is the width of the band")
    u = paddle.clip(t / gamma + 0.5, 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def digit_num(expert_num):
    """m = ceil(log2 n), the number of binary digits that tell ``expert_num`` experts apart."""
    return (expert_num - 1).bit_length()


def single_expert_selectors(selector_logits, expert_num, gamma=1.0):
    """r(z)_i = product over the digits j of [bit j of i ? S(z_j) : 1 - S(z_j)] (DSelect-k, section 3).

    A zero is exact, and then every partial derivative of that r_i is exactly zero as well, as
    long as the product has not underflowed (below 1e-38, for n > 4 a corner of the band where
    the digits are all within 1e-6 of its edge).

    Args:
        selector_logits: z, float32 or float64 [..., k, m] with m = ``digit_num(expert_num)`` >= 1,
            the most significant digit first.
        expert_num: n, the number of experts.
        gamma: width of the smooth-step's band.
    Returns:
        r, [..., k, n], each >= 0. Sums to 1 over the experts if n is a power of two.
    """
    digits = digit_num(expert_num)
    place = 2 ** np.arange(digits - 1, -1, -1)[:, None]  # the most significant digit first
    bits = np.arange(expert_num)[None, :] // place % 2  # [m, n]
    sign = paddle.assign((2 * bits - 1).astype(_numpy_dtype(selector_logits)))
    # Digit by digit: paddle.prod's gradient is NaN where a factor is exactly 0 (2.6.2, 3.3.1).
    selectors = smooth_step(selector_logits[..., 0:1] * sign[0], gamma)
    for j in range(1, digits):
        selectors = selectors * smooth_step(selector_logits[..., j : j + 1] * sign[j], gamma)
    return selectors


def gate_weights(selectors, mixing_logits):
    """q = sum over the selectors s of softmax(w)_s r(z^(s)) (DSelect-k, section 3).

    Args:
        selectors: r, [..., k, n].
        mixing_logits: w, [..., k].
    Returns:
        q, [..., n], each >= 0, at most k of them > 0 once every selector has settled.
    """
    mixture = paddle.unsqueeze(F.softmax(mixing_logits, axis=-1), axis=-2)  # [..., 1, k]
    # Its own shape again: without this, oneDNN's matmul (Paddle Inference, 2.6.2 and 3.3.1) misreads
    # what products by broadcasting have left, and gives wrong weights.
    selectors = paddle.reshape(selectors, [-1, *selectors.shape[1:]])
    return paddle.squeeze(mixture @ selectors, axis=-2)


def selector_entropy(selectors):
    """Sum over the selectors of -sum_i r_i log(r_i + 1e-6), mean over the examples (DSelect-k, section 3.2).

    Args:
        selectors: r, [k, n], or [B, k, n] for a per-example gate.
    Returns:
        Scalar; about 0 once every selector has settled on one expert.
    """
    column = paddle.reshape(selectors, [-1, 1])
    # -log(r + 1e-6) as the cross-entropy of a one-class distribution: legacy programs of
    # Paddle 3.x cannot build paddle.log.
    surprise = F.cross_entropy(
        column + 1e-6, paddle.zeros_like(column, dtype="int64"), use_softmax=False, reduction="none"
    )
    # mean over examples, selectors and experts, times k n: independent of the batch size
    return paddle.mean(column * paddle.reshape(surprise, [-1, 1])) * float(np.prod(selectors.shape[-2:]))


def selector_reachability(selectors):
    """Sum over the selectors of 1 / sum_{i<n} r_i, mean over the examples (DSelect-k, appendix).

    Where n is no power of two, codes n ... 2^m - 1 reach no expert; this term keeps a selector
    from putting its weight there. It is k, with zero slope, once every selector's sum is 1. A
    selector that jumps over the whole band onto such a code would stay there for ever (its slope
    is zero) and makes the term infinite, so that training stops instead of going on without it.

    Args:
        selectors: r, [k, n], or [B, k, n] for a per-example gate.
    Returns:
        Scalar.
    """
    reached = paddle.mean(selectors, axis=-1) * float(selectors.shape[-1])
    return paddle.mean(1.0 / reached) * float(selectors.shape[-2])


def _numpy_dtype(tensor):
    """NumPy's name of a tensor's dtype, in all graph modes of all releases."""
    return "float64" if "float64" in str(tensor.dtype).lower() else "float32"


def _uniform(bound):
    return nn.initializer.Uniform(-bound, bound)


class DSelectKGate(nn.Layer):
    """One task's gate: weights of n experts, at most k of them > 0 once it has settled.

    The selector logits z [k, m] and mixing logits w [k] are free parameters, the same for every
    example (``feature_size`` 0), or linear in each example's features, z = W x + b, w = G x + c.
    Initial values, and those of W, b, G, c: z ~ U(-gamma/100, gamma/100), w ~ U(-0.05, 0.05).

    Args:
        expert_num: n >= 1.
        top_k: k, from 1 to n.
        gamma: width of the smooth-step's band.
        feature_size: number of features of the routing input; 0 for free parameters.
        learning_rate_factor: the gate's learning rate over the optimizer's.
    """

    def __init__(self, expert_num, top_k, gamma=1.0, feature_size=0, learning_rate_factor=1.0):
        super().__init__()
        self.expert_num, self.top_k, self.gamma = expert_num, top_k, gamma
        self.feature_size = feature_size
        self.digits = digit_num(expert_num)
        parts = [("mixing", top_k, 0.05)]
        if self.digits:  # a single expert needs no digit to be found
            parts.insert(0, ("selector", top_k * self.digits, gamma / 100))
        for name, size, bound in parts:
            if feature_size:
                self._add(f"{name}_weight", [feature_size, size], bound, learning_rate_factor)
            self._add(f"{name}_logits", [size], bound, learning_rate_factor)

    def _add(self, name, shape, bound, learning_rate_factor):
        # No weight decay: it would pull a settled logit back into the band, where no gradient
        # had asked it to be.
        attr = paddle.ParamAttr(
            initializer=_uniform(bound), learning_rate=learning_rate_factor, regularizer=paddle.regularizer.L2Decay(0.0)
        )
        self.add_parameter(name, self.create_parameter(shape, attr=attr))

    def forward(self, features=None):
        """Weights of the experts, and what the regularisers read.

        Args:
            features: float32 [B, feature_size]; not used by a gate of free parameters.
        Returns:
            (weights, selectors): [n] and [k, n], or [B, n] and [B, k, n] for a per-example gate.
        """
        lead = [-1] if self.feature_size else []
        mixing = paddle.reshape(self._logits("mixing", features), lead + [self.top_k])
        if self.digits:
            logits = self._logits("selector", features)
            logits = paddle.reshape(logits, lead + [self.top_k, self.digits])
            selectors = single_expert_selectors(logits, self.expert_num, self.gamma)
        else:
            selectors = paddle.ones_like(paddle.unsqueeze(mixing, axis=-1))
        return gate_weights(selectors, mixing), selectors

    def _logits(self, name, features):
        logits = getattr(self, f"{name}_logits")
        if not self.feature_size:
            return logits
        return F.linear(features, getattr(self, f"{name}_weight"), logits)

    def weights_at(self, parameters):
        """A static gate's weights as plain numbers, for a program that is built for certain weights alone.

        Called while a static program is built, which this gate is a part of.

        Args:
            parameters: parameter name -> array, the gate's own among them.
        Returns:
            NumPy array float32 [n].
        """
        paddle.disable_static()
        try:
            with paddle.utils.unique_name.guard():  # the program's own names go on as if nothing had been
                gate = DSelectKGate(self.expert_num, self.top_k, self.gamma)
            for key, parameter in self.named_parameters():
                getattr(gate, key).set_value(parameters[parameter.name])
            return gate()[0].numpy()
        finally:
            paddle.enable_static()

    def regularisation(self, selectors, entropy_weight):
        """This gate's term of the loss: ``entropy_weight`` x entropy, and reachability if n is no power of two."""
        term = entropy_weight * selector_entropy(selectors)
        if self.expert_num != 2**self.digits:
            term = term + selector_reachability(selectors)
        return term


# ------------------------------------------------------------------------- sparse execution


def greatest_weights(weights):
    """Each expert's greatest weight over all tasks and examples: it is needed if that is > 0.

    Args:
        weights: per task [n] or [B, n].
    Returns:
        [n], without gradient.
    """
    rows = paddle.concat([paddle.reshape(w, [-1, w.shape[-1]]) for w in weights], axis=0)
    greatest = paddle.max(rows, axis=0)
    greatest.stop_gradient = True
    return greatest


def mix_needed_experts(experts, x, weights, expert_size, by_row=False, branch=False):
    """sum_i q_i h_i for each task, each expert computed on just the rows that need it, or not at all.

    An expert whose weight is exactly zero adds nothing to the output, to any gradient, or to its
    gate's own gradient, so leaving it out is exact. The choice is made at run time: a static
    program need not be rebuilt as gates settle. What differs from running all: a skipped expert's
    batch-norm running statistics stand still.

    Args:
        experts: n layers, each [B, ...] -> [B, expert_size].
        x: what they are given, [B, ...].
        weights: per task [n] or [B, n], >= 0.
        expert_size: H.
        by_row: choose rows, not only experts. Exact only where rows do not depend on each other:
            in eval mode, or without batch norm.
        branch: in a program, branch past an expert that nobody needs instead of giving it an empty
            batch, as is done anyway where Paddle cannot run one.
    Returns:
        T tensors [B, H].
    """
    needed = needed_rows(x, weights, by_row)
    if paddle.in_dynamic_mode() or (_runs_empty_batches() and not branch):
        return _mix_by_dispatch(experts, x, weights, expert_size, needed)
    return _mix_past_branches(experts, x, weights, expert_size, needed)


def needed_rows(x, weights, by_row=False):
    """Which expert a task needs for which row: 1 or 0, float32 [n, B]. All rows alike, unless ``by_row``."""
    if by_row and all(len(w.shape) == 2 for w in weights):
        needed = paddle.transpose(paddle.add_n([paddle.cast(w > 0, "float32") for w in weights]) > 0, [1, 0])
    else:
        needed = paddle.unsqueeze(greatest_weights(weights) > 0, axis=1)
    needed = paddle.cast(needed, "float32") * paddle.ones([1, paddle.shape(x)[0]])
    needed.stop_gradient = True
    return needed


def _mix_by_dispatch(experts, x, weights, expert_size, needed):
    """Gather the pairs (expert, row), sorted by expert, split them among the experts, and sum up by row.

    An expert without a pair is not called or, in a program, gets an empty batch: a small part of
    what a branch past it costs there (benchmarks/LOG.md).
    """
    pairs = paddle.nonzero(needed)  # [P, 2]
    sizes = paddle.cast(paddle.einsum("nb->n", needed), "int64")
    sizes = sizes.tolist() if paddle.in_dynamic_mode() else paddle.unbind(sizes)
    mixtures = [_zeros(x, expert_size) for _ in weights]
    called = list(zip(experts, paddle.split(paddle.gather(x, pairs[:, 1]), sizes)))
    if paddle.in_dynamic_mode():
        called = [pair for pair, size in zip(called, sizes) if size]
        if not called:  # all gates have lost all their weight
            return mixtures
    outputs = paddle.concat([expert(chunk) for expert, chunk in called])  # [P, H]
    return [_add_weighted(mixture, outputs, w, pairs) for mixture, w in zip(mixtures, weights)]


def _mix_past_branches(experts, x, weights, expert_size, needed):
    """The same in a program where an expert without a row is branched past: its outputs are zeros.

    In the legacy programs of Paddle 3.x, which cannot hold a branch, all experts run on all rows,
    to the same result.
    """

    def on_rows(expert, i):
        index = paddle.flatten(paddle.nonzero(needed[i]))
        return paddle.scatter(_zeros(x, expert_size), index, expert(paddle.gather(x, index)))

    def no_rows():
        return _zeros(x, expert_size)

    if _can_branch():
        outputs = [
            paddle.static.nn.cond(paddle.max(needed[i]) > 0, lambda expert=expert, i=i: on_rows(expert, i), no_rows)
            for i, expert in enumerate(experts)
        ]
    else:
        outputs = [expert(x) for expert in experts]
    return [_sum_weighted(outputs, w) for w in weights]


def _zeros(x, expert_size):
    return paddle.zeros([paddle.shape(x)[0], expert_size], x.dtype)


def _add_weighted(mixture, outputs, weights, pairs):
    """Add to ``mixture`` [B, H] the ``outputs`` [P, H] of ``pairs`` [P, 2] by their ``weights`` [n] or [B, n]."""
    if len(weights.shape) == 1:
        of_pairs = paddle.gather(weights, pairs[:, 0])
    else:
        of_pairs = paddle.gather_nd(weights, pairs[:, ::-1])
    return paddle.scatter(mixture, pairs[:, 1], outputs * paddle.unsqueeze(of_pairs, axis=1), overwrite=False)


def _sum_weighted(outputs, weights):
    """The same for n ``outputs`` [B, H]: in the same order, forward and backward, and so rounded alike.

    (A matrix product would do, but Adam makes steps of what it rounds otherwise.)
    """
    mixture = None
    for i, output in enumerate(outputs):
        if len(weights.shape) == 1:
            of_rows = paddle.gather_nd(weights, paddle.full([paddle.shape(output)[0], 1, 1], i, "int64"))  # [B, 1]
        else:
            of_rows = weights[:, i : i + 1]
        mixture = output * of_rows if mixture is None else mixture + output * of_rows
    return mixture


def _runs_empty_batches():
    """Whether a program here computes a layer of no rows, and its gradients: since Paddle 3.1.1, on CPU and GPU."""
    version = [int(part) for part in re.findall(r"\d+", paddle.__version__)[:3]]
    return paddle.framework.in_pir_mode() and version >= [3, 1, 1] and paddle.get_device()[:3] in ("cpu", "gpu")


def _can_branch():
    """Whether ``paddle.static.nn.cond`` builds here: not in the legacy programs of Paddle 3.x."""
    if paddle.in_dynamic_mode() or paddle.framework.in_pir_mode():
        return True
    return int(paddle.__version__.split(".")[0]) < 3


# -------------------------------------------------------------------------------- the network


def _linear(in_size, out_size):
    init = nn.initializer.TruncatedNormal(std=1.0 / math.sqrt(in_size))
    return nn.Linear(in_size, out_size, weight_attr=paddle.ParamAttr(initializer=init))


def _convolution(in_channels, out_channels, norm):
    init = nn.initializer.XavierNormal()
    # no bias under batch norm: it would subtract it, and Adam would make steps of its rounding noise
    bias_attr = False if norm == "batch" else None
    return nn.Sequential(
        nn.Conv2D(in_channels, out_channels, 5, weight_attr=paddle.ParamAttr(initializer=init), bias_attr=bias_attr),
        *_norm(norm, out_channels),
        MaxPool(),  # before ReLU: the same result as after it, at a quarter of ReLU's work
        nn.ReLU(),
    )


class MaxPool(nn.Layer):
    """Max-pooling by 2.

    In training by the kernel that notes where each maximum was: with its gradient it takes a third of
    the time of the plain one on a CPU, where the gradient looks for the maxima again (benchmarks/LOG.md).
    """

    def forward(self, x):
        return F.max_pool2d(x, 2, return_mask=True)[0] if self.training else F.max_pool2d(x, 2)


def _norm(norm, channels):
    if norm == "batch":
        return [nn.BatchNorm2D(channels)]
    return [nn.GroupNorm(channels // GROUP_SIZE, channels)] if norm == "group" else []


class Expert(nn.Layer):
    """Two convolution blocks and two linear layers: [B, 1, 36, 36] -> [B, expert_size].

    Args:
        expert_size: width of the output.
        norm: "batch", "group" (of ``GROUP_SIZE`` channels), or "none".
    """

    def __init__(self, expert_size, norm="batch"):
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(1, 10, norm),  # [B, 10, 16, 16]
            _convolution(10, 20, norm),  # [B, 20, 6, 6]
            nn.Flatten(),
            _linear(720, 50),
            nn.ReLU(),
            _linear(50, expert_size),
            nn.ReLU(),
        )

    def forward(self, image):
        return self.layers(image)


class Tower(nn.Layer):
    """A task's own head: [B, expert_size] -> logits [B, class_num]."""

    def __init__(self, expert_size, tower_size, class_num):
        super().__init__()
        self.layers = nn.Sequential(
            _linear(expert_size, tower_size),
            nn.ReLU(),
            _linear(tower_size, tower_size),
            nn.ReLU(),
            _linear(tower_size, class_num),
        )

    def forward(self, mixture):
        return self.layers(mixture)


class MultiGateMixture(nn.Layer):
    """n shared experts; for each task a gate over them and a tower behind it.

    ``step`` counts the training steps (forward passes in training mode with ``details``). It is a
    parameter that no gradient reaches, because a static program refuses buffers, and so it is
    saved and goes on with the weights; the ramp of the entropy weight reads it.

    Args:
        hyper: HyperParameters.
    """

    def __init__(self, hyper):
        super().__init__()
        self.expert_size = hyper.expert_size
        self.experts = nn.LayerList([Expert(hyper.expert_size, hyper.expert_norm) for _ in range(hyper.expert_num)])
        self.rows_are_independent = hyper.expert_norm != "batch"
        self.branch = False  # see mix_needed_experts; for whoever builds a program that must not have empty batches
        self.gates = nn.LayerList(
            [
                DSelectKGate(
                    hyper.expert_num,
                    hyper.top_k,
                    hyper.gamma,
                    IMAGE_SIZE**2 if hyper.gate == "dselect_k_per_example" else 0,
                    hyper.optimizer_gate_learning_rate_factor,
                )
                for _ in range(hyper.task_num)
            ]
        )
        self.towers = nn.LayerList(
            [Tower(hyper.expert_size, hyper.tower_size, hyper.class_num) for _ in range(hyper.task_num)]
        )
        self.entropy_weights = entropy_weights(hyper.entropy_weight, hyper.entropy_schedule, hyper.entropy_ramp_steps)
        self.step = self.create_parameter([1], dtype="int64", default_initializer=nn.initializer.Constant(0))
        self.step.stop_gradient = True

    def forward(self, image, details=False):
        """Predict.

        Args:
            image: float32 [B, 1, 36, 36] in 0..1.
            details: return what the loss and the log need as well.
        Returns:
            List of T logits [B, class_num]; with ``details`` (logits, gate_weights, regularisation):
            gate_weights per task [n] or [B, n], regularisation the scalar sum of the gates' terms,
            at the entropy weight of this step.
        """
        features = paddle.flatten(image, start_axis=1)
        gated = [gate(features) for gate in self.gates]
        weights = [w for w, _ in gated]
        by_row = self.rows_are_independent or not self.training
        mixtures = mix_needed_experts(self.experts, image, weights, self.expert_size, by_row, self.branch)
        logits = [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]
        if not details:
            return logits
        return logits, weights, self._regularisation([r for _, r in gated])

    def parameter_labels(self):
        """What to call each parameter in a message: Paddle's name -> structured name, and the task that owns it."""
        labels = {}
        for name, parameter in self.named_parameters():
            part, index = name.split(".")[:2] if "." in name else (name, "")
            owner = f" (task {int(index) + 1})" if part in ("gates", "towers") else ""
            labels[parameter.name] = name + owner
        return labels

    def forward_settled(self, image, weights):
        """Predict with static gates whose weights are known: only experts with a weight are run, with no branch.

        Args:
            image: float32 [B, 1, 36, 36] in 0..1.
            weights: per task NumPy array [n], as ``DSelectKGate.weights_at`` gives it.
        Returns:
            List of T logits [B, class_num], equal to ``forward``'s to rounding.
        """
        # a gate that has lost all its weight has a mixture of zeros, for which any expert will do
        needed = [np.flatnonzero(w) if np.any(w) else [0] for w in weights]
        outputs = {i: self.experts[i](image) for i in sorted({i for of_task in needed for i in of_task})}
        mixtures = [
            paddle.add_n([outputs[i] * float(w[i]) for i in of_task]) for of_task, w in zip(needed, weights)
        ]  # not a matmul with the weights, which makes programs forget that the batch is free
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]

    def _regularisation(self, selectors):
        last = len(self.entropy_weights) - 1
        table = paddle.assign(self.entropy_weights)
        entropy_weight = paddle.gather(table, paddle.clip(self.step, 0, last))
        if self.training:
            paddle.increment(self.step)
        terms = [gate.regularisation(r, entropy_weight) for gate, r in zip(self.gates, selectors)]
        return paddle.mean(paddle.add_n(terms))


def entropy_weights(entropy_weight, schedule, ramp_steps):
    """The entropy weight at step 0, 1, ..., the last entry being that of all later steps.

    Linear: weight x t / ramp_steps. Cosine: weight x (1 - cos(pi t / ramp_steps)) / 2.

    Returns:
        float32 NumPy array [1] (constant) or [ramp_steps + 1].
    """
    if schedule == "constant":
        return np.full([1], entropy_weight, "float32")
    progress = np.arange(ramp_steps + 1) / ramp_steps
    if schedule == "cosine":
        progress = (1 - np.cos(np.pi * progress)) / 2
    return (entropy_weight * progress).astype("float32")


def check_label_num(label_num, hyper):
    """Raise ValueError if the reader gives too few labels. Surplus ones are passed over, as PaddleRec's tools do."""
    if label_num < hyper.task_num:
        raise ValueError(
            f"the reader gives {label_num} labels, but hyper_parameters.task_num is {hyper.task_num}. "
            f"Set task_num to {label_num}, or use a reader with {hyper.task_num} labels."
        )


def accuracy_names(hyper):
    """Printed name of each task's accuracy: Accuracy1, Accuracy2, ..."""
    return [f"Accuracy{t + 1}" for t in range(hyper.task_num)]


def experts_used(gate_weights_of_tasks):
    """Number of experts with a weight > 0 for any task.

    Args:
        gate_weights_of_tasks: per task [n], or [B, n] for a per-example gate.
    Returns:
        int64 scalar; for per-example gates a float32 scalar: the number for one example, mean over the batch.
    """
    used = paddle.cast(paddle.add_n([paddle.cast(w > 0, "float32") for w in gate_weights_of_tasks]) > 0, "float32")
    number = paddle.mean(used) * float(used.shape[-1])
    return number if len(used.shape) == 2 else paddle.cast(number + 0.5, "int64")  # a cast cuts off what follows


def values_at_end(hyper):
    """Names of the printed numbers that describe the network, not a batch: an epoch's is the one at its end."""
    return ("experts_used",) if hyper.gate == "dselect_k" else ()


def is_right(logits, label):
    """Whether the class of the greatest logit is the label: float64 [B, 1], 1 or 0.

    Args:
        logits: [B, class_num].
        label: int64 [B] or [B, 1].
    """
    return paddle.cast(paddle.topk(logits, 1)[1] == paddle.reshape(label, [-1, 1]), "float64")


# ------------------------------------------------------------------------ loss and optimizer


def losses(logits, labels, hyper, regularisation=None):
    """What training minimizes, and each task's part of it.

    Args:
        logits: T tensors [B, class_num].
        labels: T tensors int64 [B] or [B, 1].
        hyper: HyperParameters.
        regularisation: scalar, the gates' terms; None: without.
    Returns:
        {printed name: scalar}: ``loss``, the sum over the tasks of weight x cross-entropy (a mean over
        the batch), and the regularisation; then ``loss1``, ``loss2``, ..., each task's cross-entropy.
    """
    of_tasks = [F.cross_entropy(z, paddle.reshape(label, [-1, 1])) for z, label in zip(logits, labels)]
    weights = hyper.task_weights or [1.0] * len(of_tasks)
    loss = paddle.add_n([weight * part for weight, part in zip(weights, of_tasks)])
    if regularisation is not None:
        loss = loss + regularisation
    return {"loss": loss, **{f"loss{t + 1}": part for t, part in enumerate(of_tasks)}}


class TrainingSchedule(paddle.optimizer.lr.LRScheduler):
    """A learning rate for every training step, moved on by ``step()`` *before* each of them.

    PaddleRec's tools never move a schedule on, so the wrappers do. Its position is the number of
    training steps begun, minus one; ``state_dict()`` holds it.

    Args:
        schedule: one of Paddle's schedulers, asked for the rate at a position.
        total_steps: the position at which the schedule ends and the rate stays; None: never.
    """

    def __init__(self, schedule, total_steps=None):
        self.schedule, self.total_steps = schedule, total_steps
        super().__init__(schedule.base_lr)
        self.last_epoch = -1  # Paddle counts "epochs" whatever they are; no step has begun

    def get_lr(self):
        position = self.last_epoch if self.total_steps is None else min(self.last_epoch, self.total_steps)
        self.schedule.step(position)
        return self.schedule()


def learning_rate_schedule(hyper, total_steps):
    """The course of the learning rate over the training.

    Args:
        hyper: HyperParameters.
        total_steps: training steps in all, or None if they are not known: then the cosine and
            one_cycle schedules are not followed, and one line in the log says so.
    Returns:
        TrainingSchedule, or a number if the rate is constant.
    """
    rate, name, warmup = hyper.optimizer_learning_rate, hyper.optimizer_schedule, hyper.optimizer_warmup_steps
    if name != "constant" and total_steps is None:
        LOG.warning(
            "the %s schedule of the learning rate is not followed: the number of steps is unknown. "
            "Set runner.steps_per_epoch.",
            name,
        )
        name = "constant"
    schedule = rate
    if name == "one_cycle":
        # total_steps + 1: Paddle refuses to be asked for the rate at the very end
        schedule = paddle.optimizer.lr.OneCycleLR(max_learning_rate=rate, total_steps=total_steps + 1)
    elif name == "cosine":
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, T_max=max(total_steps - warmup, 1))
    if warmup:
        schedule = paddle.optimizer.lr.LinearWarmup(schedule, warmup, start_lr=0.0, end_lr=rate)
    if schedule is rate:
        return rate
    return TrainingSchedule(schedule, None if name == "constant" else total_steps)


def learning_rate(hyper, config):
    """``learning_rate_schedule`` over the training that a flat config describes.

    Its length is epochs x ``runner.steps_per_epoch``, which our tools count.

    Raises:
        ValueError: ``runner.lr_step`` asks the tool to move on the schedule, which the model does itself.
    """
    steps, epochs = config.get("runner.steps_per_epoch"), config.get("runner.epochs")
    rate = learning_rate_schedule(hyper, int(steps) * int(epochs) if steps and epochs else None)
    if isinstance(rate, TrainingSchedule) and config.get("runner.lr_step", "none") != "none":
        raise ValueError(
            f"runner.lr_step is {config['runner.lr_step']!r}, but this model moves its schedule itself. Set it to none."
        )
    return rate


def build_optimizer(net, hyper, learning_rate, parameters=None):
    """The optimizer that ``hyper`` asks for.

    Args:
        net: MultiGateMixture; its gates are spared from weight decay.
        learning_rate: a number or a scheduler.
        parameters: what to train, in the dynamic graph; None in a static program.
    Raises:
        ValueError: clipping by norm in a legacy program of Paddle 3.x, which cannot build it.
    """
    if hyper.optimizer_clip_norm and not _can_branch():
        raise ValueError(
            "hyper_parameters.optimizer.clip_norm cannot be used in the legacy program mode of "
            "Paddle 3.x (FLAGS_enable_pir_api=0). Set it to 0, or leave the flag alone."
        )
    clip = nn.ClipGradByGlobalNorm(hyper.optimizer_clip_norm) if hyper.optimizer_clip_norm else None
    common = {"learning_rate": learning_rate, "parameters": parameters, "grad_clip": clip}
    decay = hyper.optimizer_weight_decay
    if hyper.optimizer_class != "sgd" and paddle.framework.in_pir_mode():
        # Paddle's defaults, made once a step; as numbers they would be made anew for each parameter
        common.update({name: paddle.full([1], x) for name, x in (("beta1", 0.9), ("beta2", 0.999), ("epsilon", 1e-8))})
    if hyper.optimizer_class == "adamw":
        spared = {p.name for p in net.gates.parameters()}
        return paddle.optimizer.AdamW(
            weight_decay=decay, apply_decay_param_fun=lambda name: name not in spared, **common
        )
    if hyper.optimizer_class == "sgd":
        return paddle.optimizer.Momentum(momentum=hyper.optimizer_momentum, weight_decay=decay or None, **common)
    return paddle.optimizer.Adam(weight_decay=decay or None, **common)
