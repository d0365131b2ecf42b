"""A sparse multi-gate mixture of experts: all that is computed, for dynamic and static graph alike.

From top to bottom: checks of arguments, workarounds for Paddle's releases, the smooth-step, gates,
sparse execution, layers for experts, inputs and towers, the multi-task network. Nothing else of the
project is needed: copy this file, or install it as ``dselect_k``.

Sources: Hazimeh et al., *DSelect-k*, NeurIPS 2021 (arXiv 2106.03760) for the gate and its
regularisers; Hazimeh et al., *The Tree Ensemble Layer*, ICML 2020 (arXiv 2002.07772) for the
smooth-step; Ma et al., *Multi-gate Mixture-of-Experts*, KDD 2018, for one gate a task; Shazeer et
al., *Outrageously Large Neural Networks*, ICLR 2017 (arXiv 1701.06538) for top-k gates.

Shapes in comments: B batch, n experts, k selectors, m binary digits, T tasks, H ``expert_size``. float32 stands for
Paddle's default dtype: after ``paddle.set_default_dtype("float64")`` a network is built, and fed, in float64.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

LEAST_MAXIMUM = -1e38  # of a window; see MaxPool
GROUP_SIZE = 5  # channels that group norm takes together
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.Silu}
NORMS = ("batch", "group", "none")
INT_MAX = 2**31 - 1  # what an attribute of a kernel holds
NORM_LAYERS: dict[str, list] = {"batch": [nn.BatchNorm2D], "group": [nn.GroupNorm], "none": []}

# ---------------------------------------------------------------------------- checks of arguments


def check_whole(name: str, value: Any, low: int, high: Optional[int] = None) -> None:
    """Raise ValueError unless ``value`` is a whole number from ``low`` to ``high``."""
    if type(value) is not int or value < low or (high is not None and value > high):
        wanted = f"from {low} to {high}" if high is not None else f">= {low}"
        raise ValueError(f"{name} is {value!r}, but must be a whole number {wanted}")


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a number > 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, but must be a number > 0")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(choices)}")


@paddle.jit.not_to_static  # where compiled, a shape would hold tensors
def _check_shape(name, tensor, *wanted):
    """Raise ValueError unless the tensor has this shape; -1, there or here, stands for any size."""
    shape = list(tensor.shape)
    if len(shape) != len(wanted) or any(-1 not in (a, b) and a != b for a, b in zip(shape, wanted)):
        text = ", ".join("any" if size == -1 else str(size) for size in wanted)
        raise ValueError(f"{name} has the shape {shape}, but must be [{text}]")


# ----------------------------------------------------------------- workarounds for Paddle's releases
# paddlepaddle 3.x, legacy program mode (FLAGS_enable_pir_api=0, which PaddleRec's tools set): sum, log,
# exp, maximum, sigmoid and others do not build there, nor do branches. This file makes do with what
# every mode builds: operators, clip, max, einsum, @, log_sigmoid, erf, cross_entropy.

TRIED_WITHOUT_ROWS = (
    nn.Sequential, nn.Conv2D, nn.Linear, nn.BatchNorm1D, nn.BatchNorm2D, nn.GroupNorm, nn.LayerNorm, nn.ReLU, nn.Silu,
    nn.Dropout, nn.Flatten,
)  # fmt: skip


def can_branch() -> bool:
    """Whether ``paddle.static.nn.cond`` builds here: not in the legacy programs of Paddle 3.x."""
    if paddle.in_dynamic_mode() or paddle.framework.in_pir_mode():
        return True
    return int(paddle.__version__.split(".")[0]) < 3


def _run_without_rows(experts):
    """Whether a program here can give these experts an empty batch, with gradients.

    PIR programs can since Paddle 3.1.1, tried on CPUs only; with this file's layers and Paddle's in
    ``TRIED_WITHOUT_ROWS``. Others fail (3.3.1: recurrent layers, attention), or a user's own forward may.
    """
    version = [int(part) for part in re.findall(r"\d+", paddle.__version__)[:3]]
    if not paddle.framework.in_pir_mode() or version < [3, 1, 1] or not paddle.get_device().startswith("cpu"):
        return False
    return all(isinstance(expert, nn.Layer) for expert in experts) and all(
        type(layer).__module__ == __name__
        or type(layer) in TRIED_WITHOUT_ROWS
        or getattr(layer, "runs_without_rows", False)
        for expert in experts
        for layer in expert.sublayers(True)
    )


def _ask_for_gradient(rows, experts):
    """Have a program compute the gradient of ``rows`` too, unless all experts begin with a convolution.

    Paddle 3.3.1: without rows, most layers' gradients fail unless the input's is asked for. A
    convolution's do not, and its input's gradient takes time.
    """
    first = [next(layer for layer in expert.sublayers(True) if not layer.sublayers()) for expert in experts]
    if not all(isinstance(layer, nn.Conv2D) for layer in first):
        rows.stop_gradient = False


def _product(factors):
    """Multiply tensors one by one: the gradient of ``paddle.prod`` is NaN where a factor is 0 (2.6.2, 3.3.1)."""
    factors = iter(factors)
    product = next(factors)
    for factor in factors:
        product = product * factor
    return product


def _with_shape_stated(tensor):
    """The same tensor, its shape stated anew.

    oneDNN's matmul (Paddle Inference, 2.6.2 and 3.3.1) misreads what products by broadcasting have
    left, and gives wrong numbers.
    """
    return paddle.reshape(tensor, [-1, *tensor.shape[1:]])


def _numpy_dtype(tensor):
    """NumPy's name of a float tensor's dtype: each release and graph mode writes it in its own way."""
    return "float64" if "float64" in str(tensor.dtype).lower() else "float32"


def constant(array: np.ndarray) -> Tensor:
    """A float array as a tensor of its dtype. Paddle 2.6.2's assign keeps float64 in float32: here in two of them."""
    if array.dtype == np.float32:
        return paddle.assign(array)
    high = array.astype("float32")
    low = (array - high).astype("float32")
    return paddle.cast(paddle.assign(high), "float64") + paddle.cast(paddle.assign(low), "float64")


def kernels_compute() -> bool:
    """Whether kernels can compute here: in float32, on a CPU, and not in legacy programs."""
    if paddle.get_default_dtype() != "float32" or paddle.get_device() != "cpu":
        return False
    return paddle.in_dynamic_mode() or paddle.framework.in_pir_mode()


def is_float32(tensor: Tensor) -> bool:
    """Whether it holds float32, in whatever way this release and graph write that."""
    return tensor.dtype == paddle.float32 or str(tensor.dtype).lower().split(".")[-1] == "float32"


def _kernels_take(x):
    return is_float32(x) and kernels_compute()


def _are_plain(layers, kinds):
    """Whether the layers are of these very classes, in training, and without hooks: what kernels may stand for."""
    return [type(layer) for layer in layers] == kinds and not any(
        not layer.training
        or layer._forward_pre_hooks
        or layer._forward_post_hooks
        or getattr(layer, "_use_global_stats", None)
        for layer in layers
    )


def clip_norm_builds() -> bool:
    """Whether clipping by the global norm builds here: not in the legacy programs of Paddle 3.x."""
    return can_branch()


def runs_line_by_line(network: nn.Layer) -> bool:
    """Whether it is a network of the dynamic graph that ``paddle.jit.to_static`` has not compiled.

    Only then can an embedding's gradient be sparse: PIR programs compute a dense one without a word (3.0 to 3.3.1), and
    networks compiled by 2.6.2 a wrong one.
    """
    return paddle.in_dynamic_mode() and inspect.ismethod(network.forward)


# ------------------------------------------------------------------------------- the smooth-step


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
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
    check_positive("gamma", gamma)
    u = paddle.clip(t * (1.0 / gamma) + 0.5, 0.0, 1.0)  # Paddle's graphs divide by a number in different ways
    return u * u * (3.0 - 2.0 * u)


def digit_num(expert_num: int) -> int:
    """m = ceil(log2 n), the number of binary digits that tell ``expert_num`` experts apart."""
    check_whole("expert_num", expert_num, 1)
    return (expert_num - 1).bit_length()


def single_expert_selectors(selector_logits: Tensor, expert_num: int, gamma: float = 1.0) -> Tensor:
    """r(z)_i = product over the digits j of [bit j of i ? S(z_j) : 1 - S(z_j)] (DSelect-k, section 3).

    A zero is exact, and then every partial derivative of that r_i is exactly zero as well, as
    long as the product has not underflowed (below 1e-38, for n > 4 a corner of the band where
    the digits are all within 1e-6 of its edge).

    Args:
        selector_logits: z, float32 or float64 [..., k, m] with m = ``digit_num(expert_num)`` >= 1,
            the most significant digit first.
        expert_num: n, the number of experts, >= 2.
        gamma: width of the smooth-step's band, > 0.
    Returns:
        r, [..., k, n], each >= 0. Sums to 1 over the experts if n is a power of two.
    Raises:
        ValueError: an argument is out of range, or the last dimension of z is not m.
    """
    check_whole("expert_num", expert_num, 2)
    digits = digit_num(expert_num)
    if len(selector_logits.shape) < 2 or selector_logits.shape[-1] != digits:
        raise ValueError(
            f"selector_logits has the shape {list(selector_logits.shape)}, but must be [..., k, {digits}]: "
            f"{expert_num} experts have {digits} digits"
        )
    place = 2 ** np.arange(digits - 1, -1, -1)[:, None]  # the most significant digit first
    bits = np.arange(expert_num)[None, :] // place % 2  # [m, n]
    sign = paddle.assign((2 * bits - 1).astype(_numpy_dtype(selector_logits)))
    return _product(smooth_step(selector_logits[..., j : j + 1] * sign[j], gamma) for j in range(digits))


def gate_weights(selectors: Tensor, mixing_logits: Tensor) -> Tensor:
    """q = sum over the selectors s of softmax(w)_s r(z^(s)) (DSelect-k, section 3).

    Args:
        selectors: r, [..., k, n].
        mixing_logits: w, [..., k].
    Returns:
        q, [..., n], each >= 0, at most k of them > 0 once every selector has settled.
    Raises:
        ValueError: the shapes do not fit together.
    """
    _check_shape("mixing_logits", mixing_logits, *selectors.shape[:-1])
    mixture = paddle.unsqueeze(F.softmax(mixing_logits, axis=-1), axis=-2)  # [..., 1, k]
    return paddle.squeeze(mixture @ _with_shape_stated(selectors), axis=-2)


def selector_entropy(selectors: Tensor) -> Tensor:
    """Sum over the selectors of -sum_i r_i log(r_i + 1e-6), mean over the examples (DSelect-k, section 3.2).

    Args:
        selectors: r, [k, n], or [B, k, n] for a per-example gate.
    Returns:
        Scalar; about 0 once every selector has settled on one expert.
    """
    column = paddle.reshape(selectors, [-1, 1])
    # -log(r + 1e-6) as the cross-entropy of a one-class distribution: see the workarounds above
    surprise = F.cross_entropy(
        column + 1e-6, paddle.zeros_like(column, dtype="int64"), use_softmax=False, reduction="none"
    )
    # mean over examples, selectors and experts, times k n: independent of the batch size
    return paddle.mean(column * paddle.reshape(surprise, [-1, 1])) * float(np.prod(selectors.shape[-2:]))


def selector_reachability(selectors: Tensor) -> Tensor:
    """Sum over the selectors of 1 / sum_{i<n} r_i, mean over the examples (DSelect-k, appendix).

    Where n is not a power of two, codes n ... 2^m - 1 reach no expert; this term keeps a selector
    from putting its weight there. It is k, with zero slope, once every selector's sum is 1. A
    selector that jumps over the whole band onto such a code would stay there for ever (its slope
    is zero) and makes the term infinite, so that training stops instead of going on without it.

    Args:
        selectors: r, [k, n], or [B, k, n] for a per-example gate.
    Returns:
        Scalar.
    """
    reached = paddle.mean(selectors, axis=-1) * float(selectors.shape[-1])
    one = paddle.ones_like(reached)  # 1.0 would make float32 of it, in legacy programs
    return paddle.mean(one / reached) * float(selectors.shape[-2])


# -------------------------------------------------------------------------------------- gates


class Gate(nn.Layer):
    """What a mixture asks of a gate. A gate of your own is a subclass with these four.

    Args:
        expert_num: n, from 1.
        feature_size: width of the routing features; 0 for a gate that reads none.

    Attributes:
        per_example: whether each example has weights of its own.
        mean_of_rows: function [B, ...] -> [...], the mean over the examples, for penalties that are not themselves such
            a mean; to be replaced where a batch is spread over several processes.
    """

    def __init__(self, expert_num: int, feature_size: int = 0) -> None:
        super().__init__()
        check_whole("expert_num", expert_num, 1)
        check_whole("feature_size", feature_size, 0)
        self.expert_num, self.feature_size = expert_num, feature_size
        self.per_example = feature_size > 0
        self.mean_of_rows: Callable = _mean_of_rows

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """The experts' weights.

        Args:
            features: float32 [B, feature_size]; a gate without features passes over them.
        Returns:
            (weights, state): weights >= 0, [n], or [B, n] if ``per_example``; a weight of exactly 0
            means that the expert is not computed. state is whatever ``penalties`` needs.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def penalties(self, state: Any) -> dict[str, Tensor]:
        """This gate's terms of the loss by name, before they are weighted: name -> scalar."""
        return {}

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        initializer: nn.initializer.Initializer,
        learning_rate_factor: float = 1.0,
    ) -> None:
        """Add a parameter that weight decay spares.

        Decay would pull a settled logit back into the band, where no gradient had asked it to be.
        """
        attr = paddle.ParamAttr(
            initializer=initializer, learning_rate=learning_rate_factor, regularizer=paddle.regularizer.L2Decay(0.0)
        )
        self.add_parameter(name, self.create_parameter(shape, attr=attr))

    def check_features(self, features: Optional[Tensor]) -> None:
        """Raise ValueError unless ``features`` are what this gate reads."""
        if features is None:
            raise ValueError(f"{self!r} needs features [B, {self.feature_size}], but got none")
        _check_shape("features", features, -1, self.feature_size)


def _mean_of_rows(x):
    return paddle.mean(x, axis=0)


class DSelectKGate(Gate):
    """The gate of DSelect-k: weights of n experts, at most k of them > 0 once it has settled.

    The selector logits z [k, m] and mixing logits w [k] are free parameters, the same for every
    example (``feature_size`` 0), or linear in each example's features, z = W x + b, w = G x + c.
    Initial values, and those of W, b, G, c: z ~ U(-gamma/100, gamma/100), w ~ U(-0.05, 0.05).
    Its penalties are ``entropy`` (``selector_entropy``) and, where n is not a power of two,
    ``reachability`` (``selector_reachability``).

    Args:
        expert_num: n >= 1.
        top_k: k, from 1 to n.
        gamma: width of the smooth-step's band, > 0.
        feature_size: number of routing features; 0 for free parameters.
        learning_rate_factor: the gate's learning rate over the optimizer's, > 0.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, expert_num: int, top_k: int, gamma: float = 1.0, feature_size: int = 0, learning_rate_factor: float = 1.0
    ) -> None:
        super().__init__(expert_num, feature_size)
        check_whole("top_k", top_k, 1, expert_num)
        check_positive("gamma", gamma)
        check_positive("learning_rate_factor", learning_rate_factor)
        self.top_k, self.gamma, self.digits = top_k, gamma, digit_num(expert_num)
        parts = [("mixing", top_k, 0.05)]
        if self.digits:  # a single expert needs no digit to be found
            parts.insert(0, ("selector", top_k * self.digits, gamma / 100))
        for name, size, bound in parts:
            uniform = nn.initializer.Uniform(-bound, bound)
            if feature_size:
                self.add_weight(f"{name}_weight", [feature_size, size], uniform, learning_rate_factor)
            self.add_weight(f"{name}_logits", [size], uniform, learning_rate_factor)

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``Gate.forward``; the state is the selectors r, [k, n] or [B, k, n]."""
        if self.feature_size:
            self.check_features(features)
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

    def penalties(self, state: Any) -> dict[str, Tensor]:
        selectors = state
        terms = {"entropy": selector_entropy(selectors)}
        if self.expert_num != 2**self.digits:
            terms["reachability"] = selector_reachability(selectors)
        return terms

    def extra_repr(self):
        features = f"feature_size={self.feature_size}" if self.feature_size else "the same for every example"
        return f"expert_num={self.expert_num}, top_k={self.top_k}, gamma={self.gamma}, {features}"


class SoftmaxGate(Gate):
    """The gate of multi-gate mixtures (Ma et al. 2018): softmax(W x), every expert in use for every example.

    Args:
        expert_num: n >= 1.
        feature_size: number of routing features, >= 1.
        learning_rate_factor: the gate's learning rate over the optimizer's, > 0.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, expert_num: int, feature_size: int, learning_rate_factor: float = 1.0) -> None:
        super().__init__(expert_num, feature_size)
        check_whole("feature_size", feature_size, 1)
        check_positive("learning_rate_factor", learning_rate_factor)
        normal = nn.initializer.TruncatedNormal(std=1.0 / math.sqrt(feature_size))
        self.add_weight("weight", [feature_size, expert_num], normal, learning_rate_factor)

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``Gate.forward``; there is no state."""
        self.check_features(features)
        return F.softmax(features @ self.weight, axis=-1), None

    def extra_repr(self):
        return f"expert_num={self.expert_num}, feature_size={self.feature_size}"


class TopKGate(Gate):
    """Softmax over the k largest of n logits, the other weights exactly 0 (Shazeer et al. 2017, section 2.1).

    The logits are H = x W_g and, where ``noisy``, in training H + standard normal x softplus(x W_noise).
    Its penalty ``balance`` is the sum of the squared coefficients of variation of each expert's
    importance, the sum of its weights over the batch, and, where ``noisy`` and k < n, of its load, the
    sum over the batch of the probability that the expert is chosen (Shazeer et al. 2017, section 4 and
    appendix A). Both W start at 0 in the paper; here W_g starts at random, so that a gate without
    noise does not begin with n equal logits.

    Args:
        expert_num: n >= 1.
        top_k: k, from 1 to n.
        feature_size: number of routing features, >= 1.
        noisy: add noise in training.
        learning_rate_factor: the gate's learning rate over the optimizer's, > 0.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, expert_num: int, top_k: int, feature_size: int, noisy: bool = False, learning_rate_factor: float = 1.0
    ) -> None:
        super().__init__(expert_num, feature_size)
        check_whole("top_k", top_k, 1, expert_num)
        check_whole("feature_size", feature_size, 1)
        check_positive("learning_rate_factor", learning_rate_factor)
        self.top_k, self.noisy = top_k, noisy
        normal = nn.initializer.TruncatedNormal(std=1.0 / math.sqrt(feature_size))
        self.add_weight("weight", [feature_size, expert_num], normal, learning_rate_factor)
        if noisy:
            zero = nn.initializer.Constant(0.0)
            self.add_weight("noise_weight", [feature_size, expert_num], zero, learning_rate_factor)

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``Gate.forward``; the state is the weights and, with noise, the probabilities of being chosen."""
        self.check_features(features)
        clean = features @ self.weight
        if not (self.noisy and self.training):
            weights = self._softmax_of_largest(clean)
            return weights, (weights, None)
        scale = -F.log_sigmoid(-(features @ self.noise_weight)) + 1e-2  # softplus; 1e-2: as in the paper's code
        logits = clean + scale * paddle.randn([paddle.shape(features)[0], self.expert_num], clean.dtype)
        weights = self._softmax_of_largest(logits)
        return weights, (weights, self._chosen(clean, logits, scale))

    def _softmax_of_largest(self, logits):
        values, indices = paddle.topk(logits, self.top_k)  # [B, k]
        places = paddle.cast(F.one_hot(indices, self.expert_num), logits.dtype)  # [B, k, n]
        return paddle.squeeze(paddle.unsqueeze(F.softmax(values, axis=-1), axis=1) @ places, axis=1)

    def _chosen(self, clean, logits, scale):
        """P(x, i), the probability that expert i is among the k largest if its noise is drawn again: [B, n], or None.

        That is Phi((clean_i - the k-th largest of the other logits) / scale_i).
        """
        if self.top_k == self.expert_num:
            return None
        largest = paddle.topk(logits, self.top_k + 1)[0]
        kth, next_one = largest[:, self.top_k - 1 : self.top_k], largest[:, self.top_k :]
        chosen = paddle.cast(logits >= kth, logits.dtype)
        threshold = chosen * next_one + (1.0 - chosen) * kth
        return 0.5 * (1.0 + paddle.erf((clean - threshold) / scale / math.sqrt(2.0)))

    def penalties(self, state: Any) -> dict[str, Tensor]:
        weights, chosen = state
        mean = self.mean_of_rows if self.training else _mean_of_rows
        terms = [_squared_variation(mean(weights))]
        if chosen is not None:
            terms.append(_squared_variation(mean(chosen)))
        return {"balance": paddle.add_n(terms)}

    def extra_repr(self):
        noise = ", noisy" if self.noisy else ""
        return f"expert_num={self.expert_num}, top_k={self.top_k}, feature_size={self.feature_size}{noise}"


def _squared_variation(x):
    """Variance over squared mean of x [n]; 1e-10 keeps a gate without weight finite."""
    mean = paddle.mean(x)
    return paddle.mean((x - mean) ** 2) / (mean**2 + 1e-10)


class FixedGate(Gate):
    """Weights that are never trained: a control to compare gates with, or one expert a task.

    Args:
        weights: n numbers >= 0.
    Raises:
        ValueError: a weight is negative or not finite.
    """

    def __init__(self, weights: Union[Sequence[float], np.ndarray]) -> None:
        weights = np.asarray(weights, paddle.get_default_dtype())
        if weights.ndim != 1 or not np.all(np.isfinite(weights) & (weights >= 0)):
            raise ValueError(f"weights are {weights.tolist()}, but must be a list of numbers >= 0")
        super().__init__(len(weights))
        self.weights = weights

    @classmethod
    def of_random_experts(cls, expert_num: int, top_k: int, seed: int) -> "FixedGate":
        """Equal weights for ``top_k`` of ``expert_num`` experts, drawn from ``seed``."""
        check_whole("top_k", top_k, 1, expert_num)
        weights = np.zeros(expert_num)
        weights[np.random.default_rng(seed).permutation(expert_num)[:top_k]] = 1.0 / top_k
        return cls(weights)

    def forward(self, features: Optional[Tensor] = None) -> tuple[Tensor, Any]:
        """See ``Gate.forward``; there is no state."""
        return constant(self.weights), None

    def extra_repr(self):
        used = {int(i): round(float(self.weights[i]), 4) for i in np.flatnonzero(self.weights)}
        return f"expert_num={self.expert_num}, weights={used}"


def constant_weights(gates: nn.LayerList) -> list[np.ndarray]:
    """The weights [n] of each gate, as in evaluation, if they are the same for every example. In the dynamic graph."""
    was_training = gates.training
    gates.eval()  # a gate may be noisy in training
    with paddle.no_grad():
        weights = [gate()[0].numpy() for gate in gates]
    if was_training:
        gates.train()
    return weights


# ----------------------------------------------------------------------------- sparse execution


def greatest_weights(weights: Sequence[Tensor]) -> Tensor:
    """Each expert's greatest weight over all gates and examples: it is needed if that is > 0.

    Args:
        weights: per gate [n] or [B, n].
    Returns:
        [n], without gradient.
    """
    rows = paddle.concat([paddle.reshape(w, [-1, w.shape[-1]]) for w in weights], axis=0)
    greatest = paddle.max(rows, axis=0)
    greatest.stop_gradient = True
    return greatest


def experts_used(weights: Sequence[Tensor]) -> Tensor:
    """Number of experts with a weight > 0 for any gate.

    Args:
        weights: per gate [n], or [B, n] for a per-example gate.
    Returns:
        int64 scalar; for per-example gates a float32 scalar: the number for one example, mean over the batch.
    """
    used = paddle.cast(paddle.add_n([paddle.cast(w > 0, "float32") for w in weights]) > 0, "float32")
    number = paddle.mean(used) * float(used.shape[-1])
    return number if len(used.shape) == 2 else paddle.cast(number + 0.5, "int64")  # a cast truncates


def mix_needed_experts(
    experts: Sequence[nn.Layer],
    x: Tensor,
    weights: Sequence[Tensor],
    expert_size: int,
    by_row: bool = False,
    branch: bool = False,
    agree: Optional[Callable] = None,
) -> list[Tensor]:
    """sum_i q_i h_i for each gate, each expert computed on just the rows that need it, or not at all.

    An expert whose weight is exactly zero adds nothing to the output, to any gradient, or to its
    gate's own gradient, so leaving it out is exact. The choice is made at run time: a static
    program need not be rebuilt as gates settle. What differs from running all: a skipped expert's
    batch-norm running statistics stand still.

    Args:
        experts: n layers, each [B, ...] -> [B, expert_size].
        x: what they are given, [B, ...].
        weights: per gate [n] or [B, n], >= 0.
        expert_size: H.
        by_row: choose rows, not only experts. Exact only where rows do not depend on each other:
            in eval mode, or without batch norm.
        branch: in a program, branch past an expert that nobody needs instead of giving it an empty
            batch, as is done anyway where Paddle, or a layer of an expert, is not known to run one.
        agree: see ``needed_rows``.
    Returns:
        One tensor [B, H] for each gate.
    Raises:
        ValueError: a gate's weights are not [n] or [B, n].
    """
    _check_weights(weights, len(experts))
    needed = needed_rows(x, weights, by_row, agree)
    if paddle.in_dynamic_mode() or (not branch and _run_without_rows(experts)):
        return _mix_by_dispatch(experts, x, weights, expert_size, needed)
    return _mix_past_branches(experts, x, weights, expert_size, needed)


def _check_weights(weights, expert_num):
    """Raise ValueError unless each gate's weights are [n] or [B, n]."""
    for w in weights:
        _check_shape("a gate's weights", w, *[-1] * (len(w.shape) == 2), expert_num)


def needed_rows(x: Tensor, weights: Sequence[Tensor], by_row: bool = False, agree: Optional[Callable] = None) -> Tensor:
    """Which expert a gate needs for which row: 1 or 0, float32 [n, B]. All rows alike, unless ``by_row``.

    Args:
        x, weights, by_row: see ``mix_needed_experts``.
        agree: function that gives the elementwise maximum of [n] over several processes, for experts that all of them
            must run if one of them does; None: each decides by itself.
    """
    if by_row and all(len(w.shape) == 2 for w in weights):
        needed = paddle.transpose(paddle.add_n([paddle.cast(w > 0, "float32") for w in weights]) > 0, [1, 0])
    else:
        greatest = greatest_weights(weights)
        needed = paddle.unsqueeze((greatest if agree is None else agree(greatest)) > 0, axis=1)
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
    mixtures = [_zeros(x, expert_size) for _ in weights]
    rows = paddle.gather(x, pairs[:, 1])
    if paddle.in_dynamic_mode():
        called = [(expert, size) for expert, size in zip(experts, sizes.tolist()) if size]
        if not called:  # all gates have lost all their weight
            return mixtures
        experts, sizes = zip(*called)
        sizes = list(sizes)
    else:
        sizes = paddle.unbind(sizes)
        _ask_for_gradient(rows, experts)
    chunks = zip(experts, paddle.split(rows, sizes))
    outputs = paddle.concat([_checked_output(expert(chunk), expert_size) for expert, chunk in chunks])  # [P, H]
    return [_add_weighted(mixture, outputs, w, pairs) for mixture, w in zip(mixtures, weights)]


def _mix_past_branches(experts, x, weights, expert_size, needed):
    """The same in a program where an expert without a row is branched past: its outputs are zeros.

    In the legacy programs of Paddle 3.x, which cannot hold a branch, all experts run on all rows,
    to the same result.
    """

    def on_rows(expert, i):
        index = paddle.flatten(paddle.nonzero(needed[i]))
        output = _checked_output(expert(paddle.gather(x, index)), expert_size)
        return paddle.scatter(_zeros(x, expert_size), index, output)

    def no_rows():
        return _zeros(x, expert_size)

    if can_branch():
        outputs = [
            paddle.static.nn.cond(paddle.max(needed[i]) > 0, lambda expert=expert, i=i: on_rows(expert, i), no_rows)
            for i, expert in enumerate(experts)
        ]
    else:
        outputs = [_checked_output(expert(x), expert_size) for expert in experts]
    return [_sum_weighted(outputs, w) for w in weights]


def _checked_output(output, expert_size):
    _check_shape("an expert's output", output, -1, expert_size)
    return output


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

    (A matrix product would be shorter, but it rounds differently, and Adam turns that into other steps.)
    """
    mixture = None
    for i, output in enumerate(outputs):
        if len(weights.shape) == 1:
            of_rows = paddle.gather_nd(weights, paddle.full([paddle.shape(output)[0], 1, 1], i, "int64"))  # [B, 1]
        else:
            of_rows = weights[:, i : i + 1]
        mixture = output * of_rows if mixture is None else mixture + output * of_rows
    return mixture


class Mixed(NamedTuple):
    """What a mixture gives: outputs and weights by gate, penalties summed over the gates by name."""

    outputs: list[Tensor]
    weights: list[Tensor]
    penalties: dict[str, Tensor]


class SparseMixture(nn.Layer):
    """n shared experts and any number of gates over them. An expert of zero weight is not computed.

    Args:
        experts: n layers, each [B, ...] -> [B, H]. Each has an attribute ``out_size``, its H, unless
            ``expert_size`` is given.
        gates: Gates over n experts.
        expert_size: H.
        rows_are_independent: whether in training an expert's output for an example depends on that
            example alone. Then the experts of a per-example gate run on just the examples that need
            them. None: if the experts have no batch norm. (In evaluation they always do.)
        kernels: what computes faster in training: an object like ``dselect_k_model.kernels.Kernels``. It is used
            for what it can compute: DSelect-k gates, and experts and towers that are plain and of one shape, where
            no gate is per example. None: the layers compute everything.
    Raises:
        ValueError: a gate is over another number of experts, or H is unknown.
    """

    def __init__(
        self,
        experts: Sequence[nn.Layer],
        gates: Sequence[Gate],
        expert_size: Optional[int] = None,
        rows_are_independent: Optional[bool] = None,
        kernels: Any = None,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        if not experts or not gates:
            raise ValueError("a mixture needs at least one expert and one gate")
        for gate in gates:
            if gate.expert_num != len(experts):
                raise ValueError(f"expert_num of {gate!r} is {gate.expert_num}, but there are {len(experts)} experts")
        size = expert_size or getattr(experts[0], "out_size", None)
        if size is None:
            raise ValueError("expert_size is None, and the experts have no out_size. Give one of them")
        self.expert_size: int = size
        self.experts, self.gates = nn.LayerList(experts), nn.LayerList(gates)
        self.rows_are_independent = rows_are_independent
        if rows_are_independent is None:
            self.rows_are_independent = not any(_is_batch_norm(layer) for e in experts for layer in e.sublayers(True))
        self.branch = False  # see mix_needed_experts; for whoever builds a program that must not have empty batches
        self.agree: Optional[Callable] = None  # in training: see needed_rows
        self.mix_experts: Optional[Callable] = (
            None  # in place of mix_needed_experts, if processes share out the experts
        )

    @property
    def per_example(self) -> bool:
        """Whether any gate has weights for each example."""
        return any(gate.per_example for gate in self.gates)

    def forward(self, x: Tensor, features: Optional[Tensor] = None) -> Mixed:
        """Mix: see ``mix``."""
        return self.mix(x, features)

    def mix(self, x: Tensor, features: Optional[Tensor] = None, towers: Sequence[nn.Layer] = ()) -> Mixed:
        """Mix the experts' outputs by each gate's weights.

        Args:
            x: what the experts read, [B, ...].
            features: what the gates read, [B, F]; None: x, flattened.
            towers: a layer for each gate, that reads its mixture; or none.
        Returns:
            Mixed: outputs and weights, a list each, [B, H] (or a tower's output) and [n] or [B, n] by gate; penalties,
            the gates' terms of the loss, summed over the gates: name -> scalar.
        Raises:
            ValueError: there are towers, but not as many as gates.
        """
        if towers and len(towers) != len(self.gates):
            raise ValueError(f"there are {len(self.gates)} gates, but {len(towers)} towers: give one for each, or none")
        if features is None and self.per_example:
            features = paddle.flatten(x, start_axis=1)
        if self._gates_suit_kernels():
            weights, penalties = self._gate_by_kernels()
        else:
            gated = [gate(features) for gate in self.gates]
            weights, penalties = [w for w, _ in gated], self._penalties([state for _, state in gated])
        if self._mixes_by_kernels(x, weights):
            return Mixed(self._mix_by_kernels(x, weights, towers), weights, penalties)
        by_row = self.rows_are_independent or not self.training
        agree = self.agree if self.training else None
        mix = self.mix_experts or mix_needed_experts
        outputs = mix(self.experts, x, weights, self.expert_size, by_row, self.branch, agree)
        if towers:
            outputs = [tower(mixture) for tower, mixture in zip(towers, outputs)]
        return Mixed(outputs, weights, penalties)

    def _gates_suit_kernels(self):
        """Whether the kernels compute these gates: those of DSelect-k, alike, and the same for every example."""
        if self.kernels is None or not self.training or not kernels_compute():
            return False
        if len(self.experts) < 2 or self.per_example or not _are_plain(self.gates, [DSelectKGate] * len(self.gates)):
            return False
        are_alike = len({(gate.top_k, gate.gamma) for gate in self.gates}) == 1
        return are_alike and all(is_float32(gate.selector_logits) for gate in self.gates)

    def _gate_by_kernels(self):
        tensors = [tensor for gate in self.gates for tensor in (gate.selector_logits, gate.mixing_logits)]
        gate = self.gates[0]
        weights, sums = self.kernels.gates(tensors, gate.expert_num, gate.top_k, gate.gamma)
        names = ("entropy", "reachability") if gate.expert_num != 2**gate.digits else ("entropy",)
        return paddle.unbind(weights), {name: sums[i] for i, name in enumerate(names)}

    def suits_kernels(self) -> bool:
        """Whether the kernels compute these experts in training, for inputs of float32."""
        if self.kernels is None or self.per_example or not kernels_compute():
            return False
        plain = [expert.plain_shape() if isinstance(expert, (MLP, CNNExpert)) else None for expert in self.experts]
        return plain[0] is not None and plain.count(plain[0]) == len(plain) and plain[0][-1] == self.expert_size

    def _mixes_by_kernels(self, x, weights):
        if not self.training or not self.suits_kernels() or not _kernels_take(x):
            return False
        if any(len(w.shape) == 2 for w in weights):  # of a user's gate
            return False
        return type(self.experts[0]) is MLP or x.stop_gradient

    def _mix_by_kernels(self, x, weights, towers):
        _check_weights(weights, len(self.experts))
        weights = paddle.stack(weights)
        if type(self.experts[0]) is CNNExpert:
            _check_shape("image", x, -1, *self.experts[0].image_shape)
            blocks = [tensor for expert in self.experts for tensor in expert.blocks_tensors()]
            x = self.kernels.cnns(x, weights, blocks, self.experts[0].norm, self.experts[0].feature_num)
        else:
            x = paddle.flatten(x, start_axis=1) if len(x.shape) > 2 else x
            _check_shape("the input of an MLP", x, -1, self.experts[0].in_size)
        layers = [expert.linear_parameters() for expert in self.experts]
        ends = self._ends_for_kernels(towers)
        outputs = self.kernels.mlps(x, weights, layers, self.expert_size, ends)
        if towers and not ends:
            return [tower(mixture) for tower, mixture in zip(towers, outputs)]
        return outputs

    def _ends_for_kernels(self, towers):
        """Of each tower its parameters and the width of its output; none if Paddle's layers must compute them."""
        shapes: list = [isinstance(tower, MLP) and tower.plain_shape(activate_output=False) for tower in towers]
        if not all(shape and shape[0] == self.expert_size for shape in shapes):
            return []
        ends = [(tower.linear_parameters(), shape[-1]) for tower, shape in zip(towers, shapes)]
        widths = [width for _, width in ends]
        # the kernel makes all outputs as wide as the widest
        return ends if len(widths) * max(widths, default=0) <= 2 * sum(widths) else []

    def _penalties(self, states):
        terms: dict[str, Tensor] = {}
        for gate, state in zip(self.gates, states):
            for name, term in gate.penalties(state).items():
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def mix_settled(self, x: Tensor, weights: Sequence[np.ndarray]) -> list[Tensor]:
        """Mix by weights that are known: only experts with a weight are run, with no branch.

        Args:
            x: what the experts read, [B, ...].
            weights: by gate, NumPy array [n].
        Returns:
            By gate [B, H], equal to ``mix``'s to rounding.
        """
        # a gate that has lost all its weight has a mixture of zeros, for which any expert will do
        needed = [np.flatnonzero(w) if np.any(w) else [0] for w in weights]
        outputs = {i: self.experts[i](x) for i in sorted({i for of_gate in needed for i in of_gate})}
        # not a matmul with the weights, which makes programs forget that the batch is free
        return [paddle.add_n([outputs[i] * float(w[i]) for i in of_gate]) for of_gate, w in zip(needed, weights)]

    def extra_repr(self):
        return f"{len(self.experts)} experts, {len(self.gates)} gates, expert_size={self.expert_size}"


def _is_batch_norm(layer):
    return "BatchNorm" in type(layer).__name__


# ------------------------------------------------------------- layers for experts, inputs, towers


def _linear(in_size, out_size):
    init = nn.initializer.TruncatedNormal(std=1.0 / math.sqrt(in_size))
    return nn.Linear(in_size, out_size, weight_attr=paddle.ParamAttr(initializer=init))


class MaxPool(nn.Layer):
    """Max-pooling by 2.

    In training by the kernel that notes where each maximum was: with its gradient it takes a third of
    the time of the plain one on a CPU, where the gradient looks for the maxima again (benchmarks/LOG.md).
    Where a whole window is NaN, that kernel notes its maximum at -1 and gives -3.4e38, and its gradient adds to the
    number before the first one of its memory (Paddle 2.6.2 and 3.3.1). NaN added there has ended the process. Behind
    ``clip``, whose gradient chooses instead of multiplying, it is an exact 0 that is added.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.max_pool2d(x, 2)
        return paddle.clip(F.max_pool2d(x, 2, return_mask=True)[0], min=LEAST_MAXIMUM)


def _convolution(in_channels, out_channels, norm):
    init = nn.initializer.XavierNormal()
    # no bias under batch norm: it would subtract it, and Adam would make steps of its rounding noise
    bias_attr = False if norm == "batch" else None
    norms = {
        "batch": [nn.BatchNorm2D],
        "group": [lambda channels: nn.GroupNorm(channels // GROUP_SIZE, channels)],
        "none": [],
    }
    return nn.Sequential(
        nn.Conv2D(in_channels, out_channels, 5, weight_attr=paddle.ParamAttr(initializer=init), bias_attr=bias_attr),
        *[make(out_channels) for make in norms[norm]],
        MaxPool(),  # before ReLU: the same result as after it, at a quarter of ReLU's work
        nn.ReLU(),
    )


def _run_on_image(layers, norm, image, kernels, size):
    """``layers``, which begin with two blocks and a flattening; in training these by the kernels, if they can."""
    rest = list(layers)
    first, second, flatten = rest[:3]
    plain = kernels is not None and _are_plain([flatten], [nn.Flatten])
    plain = plain and _are_plain_blocks(layers, first, second, norm, image.shape[1])
    if plain and image.stop_gradient and _kernels_take(image):
        features = kernels.cnns(image, paddle.ones([1, 1]), _tensors_of_blocks(rest[:2], norm), norm, size)
        image, rest = paddle.reshape(features, [-1, size]), rest[3:]
    for layer in rest:
        image = layer(image)
    return image


def _are_plain_blocks(layers, first, second, norm, channels):
    """Whether ``layers`` and the two blocks that they begin with are as ``CNN`` makes them: see ``_are_plain``."""
    kinds = [nn.Conv2D, *NORM_LAYERS[norm], MaxPool, nn.ReLU]
    if not _are_plain([layers, first, second, *first, *second], [nn.Sequential] * 3 + kinds * 2):
        return False
    return _is_plain_block(first, norm, [10, channels, 5, 5]) and _is_plain_block(second, norm, [20, 10, 5, 5])


def _is_plain_block(block, norm, shape):
    convolution, *others = block
    settings = (convolution._padding, convolution._stride, convolution._dilation, convolution._groups)
    if settings != (0, [1, 1], [1, 1], 1) or list(convolution.weight.shape) != shape:
        return False
    if (convolution.bias is None) != (norm == "batch") or not is_float32(convolution.weight):
        return False
    if norm == "none":
        return True
    layer, wanted = others[0], {"_epsilon": 1e-5, "_momentum": 0.9, "_num_groups": shape[0] // GROUP_SIZE}
    has_affine = layer.weight is not None and layer.bias is not None
    return has_affine and all(getattr(layer, name, value) == value for name, value in wanted.items())


def _widths(in_size, linear):
    """The widths of the input and of linear layers with biases; None if they do not fit together."""
    widths = [in_size]
    for layer in linear:
        if layer.bias is None or layer.weight.shape[0] != widths[-1] or not is_float32(layer.weight):
            return None
        widths.append(layer.weight.shape[1])
    return widths


def _tensors_of_blocks(blocks, norm):
    tensors = []
    for convolution, *others in blocks:
        tensors += [convolution.weight] + ([] if norm == "batch" else [convolution.bias])
        tensors += [] if norm == "none" else [others[0].weight, others[0].bias]
        tensors += [others[0]._mean, others[0]._variance] if norm == "batch" else []
    return tensors


class CNN(nn.Layer):
    """Two blocks of convolution (5 x 5), norm, max-pool and ReLU, with 10 and 20 channels, flattened.

    Args:
        image_shape: [channels, height, width]; height and width at least 16.
        norm: "batch", "group" (of ``GROUP_SIZE`` channels), or "none".
        kernels: what computes the blocks faster in training: see ``SparseMixture``.
    Raises:
        ValueError: the image is too small, or the norm unknown.
    """

    def __init__(self, image_shape: Sequence[int], norm: str = "batch", kernels: Any = None) -> None:
        super().__init__()
        channels, *sizes = image_shape
        check_whole("channels", channels, 1)
        for size in sizes:
            check_whole("height and width of the image", size, 16)
        _check_choice("norm", norm, NORMS)
        self.image_shape = list(image_shape)
        self.blocks = nn.Sequential(_convolution(channels, 10, norm), _convolution(10, 20, norm), nn.Flatten())
        self.out_size = 20 * math.prod(((size - 4) // 2 - 4) // 2 for size in sizes)
        self.norm, self.kernels = norm, kernels

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, channels, height, width] -> [B, out_size]."""
        _check_shape("image", image, -1, *self.image_shape)
        return _run_on_image(self.blocks, self.norm, image, self.kernels, self.out_size)

    def extra_repr(self):
        return f"image_shape={self.image_shape}, out_size={self.out_size}"


class MLP(nn.Layer):
    """Linear layers, each but the last with norm, activation and dropout.

    Args:
        in_size: width of the input.
        sizes: widths of the layers, the last being the output's.
        norm: "batch", "group" (here: layer norm, of all features together), or "none".
        activation: one of ``ACTIVATIONS``.
        dropout: probability that a hidden number is set to 0 in training, from 0 up to 1.
        activate_output: give the last layer an activation too.

    Attributes:
        out_size: width of the output.
    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        in_size: int,
        sizes: Sequence[int],
        norm: str = "none",
        activation: str = "relu",
        dropout: float = 0.0,
        activate_output: bool = False,
    ) -> None:
        super().__init__()
        check_whole("in_size", in_size, 1)
        if not sizes:
            raise ValueError("sizes is empty, but an MLP has at least one layer")
        for size in sizes:
            check_whole("a layer's size", size, 1)
        _check_choice("norm", norm, NORMS)
        _check_choice("activation", activation, ACTIVATIONS)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, but must be a number >= 0 and < 1")
        self.in_size, self.out_size = in_size, sizes[-1]
        norms = {"batch": [nn.BatchNorm1D], "group": [nn.LayerNorm], "none": []}[norm]
        layers, last = [], len(sizes) - 1
        for i, (wide_in, wide_out) in enumerate(zip([in_size, *sizes], sizes)):
            layers.append(_linear(wide_in, wide_out))
            if i < last:
                layers += [make(wide_out) for make in norms]
            if i < last or activate_output:
                layers.append(ACTIVATIONS[activation]())
            if i < last and dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [B, ...], of ``in_size`` numbers an example -> [B, out_size]."""
        if len(x.shape) > 2:
            x = paddle.flatten(x, start_axis=1)
        _check_shape("the input of an MLP", x, -1, self.in_size)
        return self.layers(x)

    @paddle.jit.not_to_static
    def plain_shape(self, activate_output: bool = True) -> Optional[list[int]]:
        """The widths of input and layers if all of it is linear layers and ReLU, at the end too or not; or None."""
        linear = self.linear_layers()
        kinds = [nn.Linear, nn.ReLU] * len(linear)
        if not _are_plain(
            [self, self.layers, *self.layers], [MLP, nn.Sequential, *kinds[: len(kinds) - (not activate_output)]]
        ):
            return None
        return _widths(self.in_size, linear)

    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers among the layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def linear_parameters(self) -> list[Tensor]:
        """Weight and bias of each linear layer."""
        return [parameter for layer in self.linear_layers() for parameter in (layer.weight, layer.bias)]

    def extra_repr(self):
        return f"in_size={self.in_size}, out_size={self.out_size}"


class CNNExpert(nn.Layer):
    """The expert of the published example: a ``CNN``, then linear 50, ReLU, linear ``expert_size``, ReLU.

    Args:
        image_shape: [channels, height, width].
        expert_size: width of the output.
        norm, kernels: see ``CNN``.
    """

    def __init__(self, image_shape: Sequence[int], expert_size: int, norm: str = "batch", kernels: Any = None) -> None:
        super().__init__()
        cnn = CNN(image_shape, norm)
        head = MLP(cnn.out_size, [50, expert_size], activate_output=True)
        self.layers = nn.Sequential(*cnn.blocks, *head.layers)
        self.image_shape, self.out_size = cnn.image_shape, expert_size
        self.norm, self.kernels, self.feature_num = norm, kernels, cnn.out_size

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, channels, height, width] -> [B, expert_size]."""
        _check_shape("image", image, -1, *self.image_shape)
        return _run_on_image(self.layers, self.norm, image, self.kernels, self.feature_num)

    @paddle.jit.not_to_static
    def plain_shape(self) -> Optional[list]:
        """What experts must agree in for one kernel to compute them all, the output's width last; None if it cannot."""
        first, second, *rest = self.layers
        if not _are_plain([self, *rest], [CNNExpert, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]):
            return None
        widths = _widths(self.feature_num, [rest[1], rest[3]])
        if widths is None or not _are_plain_blocks(self.layers, first, second, self.norm, self.image_shape[0]):
            return None
        return [*self.image_shape, self.norm, *widths]

    def blocks_tensors(self) -> list[Tensor]:
        """The tensors of both blocks, as the kernels take them."""
        first, second, *_ = self.layers
        return _tensors_of_blocks([first, second], self.norm)

    def linear_parameters(self) -> list[Tensor]:
        """Weight and bias of each linear layer."""
        return [tensor for layer in (self.layers[3], self.layers[5]) for tensor in (layer.weight, layer.bias)]

    def extra_repr(self):
        return f"image_shape={self.image_shape}, out_size={self.out_size}"


class Embedding(nn.Embedding):
    """Ids -> rows of a table: ``paddle.nn.Embedding``, whose gradient is sparse where a call asks for it."""

    def forward(self, ids: Tensor, sparse: bool = False) -> Tensor:
        """int64 [B, F], ``sparse``: see ``TableInput.sparse_gradients`` -> float32 [B, F, width]."""
        return F.embedding(ids, self.weight, sparse=sparse)


POOLINGS = ("mean", "sum")  # how the embeddings of a list of ids become one


class TableInput(nn.Layer):
    """Dense features and sparse ids -> one vector: the features, then each field's embedding.

    A field has one id, or a list of ids whose embeddings are pooled; that of an empty list is 0.

    Args:
        dense_size: number of dense features, from 0.
        vocabulary_sizes: number of ids of each field with one id.
        embedding_size: width of an embedding.
        sparse_gradients: where the network runs line by line (see ``runs_line_by_line``), the embeddings' gradient has
            the rows of a batch's ids alone, for an optimizer that leaves the other rows as they are. If all lists of a
            field in a batch are empty, it has the row of id 0 too.
        kernels: as for ``SparseMixture``; in training they join features and embeddings of fields with one id, and
            refuse an id out of its field's range.
        make_embedding: makes the layer of all embeddings, as ``Embedding`` does.
        list_sizes: number of ids of each field with a list.
        list_pooling: one of ``POOLINGS`` for each of them; (): the mean for all.
        shared_embeddings: groups of fields that share their embeddings: numbers of fields from 0, first those with one
            id.
    Raises:
        ValueError: there is neither a feature nor a field; a size is out of its range; fields that share embeddings
            have different sizes.
    """

    def __init__(
        self,
        dense_size: int,
        vocabulary_sizes: Sequence[int] = (),
        embedding_size: int = 8,
        sparse_gradients: bool = False,
        kernels: Any = None,
        make_embedding: Callable = Embedding,
        list_sizes: Sequence[int] = (),
        list_pooling: Sequence[str] = (),
        shared_embeddings: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        sizes = [*vocabulary_sizes, *list_sizes]
        check_whole("dense_size", dense_size, 0 if sizes else 1)
        for size in sizes:
            check_whole("a vocabulary's size", size, 1)
        check_whole("embedding_size", embedding_size, 1)
        self.dense_size, self.field_num, self.list_num = dense_size, len(vocabulary_sizes), len(list_sizes)
        self.list_pooling = list(list_pooling) or ["mean"] * self.list_num
        if len(self.list_pooling) != self.list_num or not set(self.list_pooling) <= set(POOLINGS):
            raise ValueError(
                f"list_pooling is {self.list_pooling}, but must have {' or '.join(POOLINGS)} for each list"
            )
        self.sparse_gradients, self.kernels = sparse_gradients, kernels
        # One table for all fields, each with its own range of rows: one lookup instead of one a field.
        self.begins, row_num = _ranges(sizes, shared_embeddings)
        self.ends = self.begins + np.asarray(sizes, "int64")
        self.out_size = dense_size + len(sizes) * embedding_size
        if sizes:
            init = nn.initializer.Normal(std=1.0 / math.sqrt(embedding_size))
            self.embedding = make_embedding(row_num, embedding_size, weight_attr=paddle.ParamAttr(initializer=init))

    def forward(self, *parts: Tensor) -> Tensor:
        """Join.

        Args:
            parts: dense float32 [B, dense_size] if there are dense features; then ids int64 [B, number of fields] if
                there are fields with one id, each id from 0 to its vocabulary's size - 1; then for each field with a
                list its ids int64 [B, any length from 1], each list followed by -1 up to that length.
        Returns:
            float32 [B, out_size].
        """
        rest, joined = list(parts), []
        if self.dense_size:
            joined.append(rest.pop(0))
            _check_shape("the dense features", joined[0], -1, self.dense_size)
        sparse = self.sparse_gradients and paddle.in_dynamic_mode()
        if self.field_num:
            ids = rest.pop(0)
            _check_shape("the ids", ids, -1, self.field_num)
            if joined and not sparse and self._joins_by_kernel(joined[0]):
                ends = self.ends[: self.field_num].tolist()
                joined = [self.kernels.join(joined[0], ids, self.embedding.weight, ends)]
            else:
                vectors = self.embedding(ids + paddle.assign(self.begins[: self.field_num]), sparse)
                joined.append(paddle.flatten(vectors, start_axis=1))
        for ids, begin, pooling in zip(rest, self.begins[self.field_num :].tolist(), self.list_pooling):
            joined.append(self._pooled(ids, begin, pooling, sparse))
        return paddle.concat(joined, axis=1)

    def _pooled(self, ids, begin, pooling, sparse):
        """[B, L], -1 after the end of a list -> [B, width]."""
        is_there = ids >= 0
        # what is not there is looked up as an id that is, so that a sparse gradient has no row beside the batch's
        filled = paddle.where(is_there, ids, paddle.clip(paddle.max(ids), min=0) * paddle.ones_like(ids))
        vectors = self.embedding(filled + begin, sparse)  # [B, L, width]
        weights = paddle.cast(is_there, vectors.dtype)
        pooled = paddle.unsqueeze(weights, 1) @ vectors
        if pooling == "mean":
            lengths = paddle.unsqueeze(weights, 1) @ paddle.unsqueeze(weights, 2)  # [B, 1, 1]
            pooled = pooled / paddle.clip(lengths, min=1.0)
        return paddle.flatten(pooled, start_axis=1)

    def _joins_by_kernel(self, dense):
        if self.kernels is None or not self.training or not dense.stop_gradient or self.ends.max() > INT_MAX:
            return False
        if type(self.embedding) is not Embedding:
            return False
        in_order = (self.begins[1 : self.field_num] == self.ends[: self.field_num - 1]).all()
        return in_order and is_float32(dense) and _kernels_take(self.embedding.weight)

    def extra_repr(self):
        numbers = f"dense_size={self.dense_size}, field_num={self.field_num}, list_num={self.list_num}"
        return f"{numbers}, out_size={self.out_size}"


def _ranges(sizes, shared):
    """(where each field's rows begin in a table, int64 [fields]; the table's number of rows)."""
    first_of: dict[int, int] = {}
    for group in shared:
        if not all(0 <= field < len(sizes) for field in group) or len({sizes[field] for field in group}) != 1:
            raise ValueError(f"shared_embeddings has {list(group)}, but must name fields of the same vocabulary size")
        if len(set(group)) < len(group) or first_of.keys() & set(group):
            raise ValueError("shared_embeddings names a field twice")
        first_of.update(dict.fromkeys(group, min(group)))
    begins: list[int] = []
    row_num = 0
    for field, size in enumerate(sizes):
        is_first = first_of.get(field, field) == field
        begins.append(row_num if is_first else begins[first_of[field]])
        row_num += size * is_first
    return np.asarray(begins, "int64"), row_num


# ---------------------------------------------------------------------------------- the network


class Details(NamedTuple):
    """What the network gives for training: outputs by task; gate weights by task; the gates' weighted terms."""

    outputs: list[Tensor]
    weights: list[Tensor]
    penalty: Tensor


class MultiTaskNetwork(SparseMixture):
    """A mixture behind a shared bottom, with a gate and a tower for each task.

    ``step`` counts the training steps (forward passes in training mode with ``details``). It is a
    parameter that no gradient reaches, because a static program refuses buffers, and so it is
    saved and goes on with the weights; the ramp of the entropy weight reads it.

    Args:
        experts: see ``SparseMixture``.
        gates: one for each task.
        towers: a layer for each task, [B, H] -> the task's output.
        expert_size: H.
        bottom: layer in front of gates and experts, computed once, or None.
        inputs: layer that joins several inputs into one, or None.
        entropy_ramp: weight of the penalty ``entropy`` at step 0, 1, ..., the last being that of all later steps.
        penalty_weights: weights of the other penalties, name -> number; 1 if not named.
        learned_balance: give each task a trained log-variance (see ``tasks.losses``).
        kernels: see ``SparseMixture``.
    Raises:
        ValueError: there are not as many gates as towers.
    """

    def __init__(
        self,
        experts: Sequence[nn.Layer],
        gates: Sequence[Gate],
        towers: Sequence[nn.Layer],
        expert_size: Optional[int] = None,
        bottom: Optional[nn.Layer] = None,
        inputs: Optional[nn.Layer] = None,
        entropy_ramp: Union[Sequence[float], np.ndarray] = (0.0,),
        penalty_weights: Optional[Mapping[str, float]] = None,
        learned_balance: bool = False,
        kernels: Any = None,
    ) -> None:
        super().__init__(experts, gates, expert_size, kernels=kernels)
        if len(gates) != len(towers):
            raise ValueError(f"there are {len(gates)} gates, but {len(towers)} towers: each task has one of each")
        self.inputs, self.bottom = inputs, bottom
        self.towers = nn.LayerList(towers)
        self.entropy_ramp = np.asarray(entropy_ramp, paddle.get_default_dtype())
        self.penalty_weights = penalty_weights or {}
        self.log_variances = None
        if learned_balance:
            zero = nn.initializer.Constant(0.0)
            self.log_variances = self.create_parameter([len(towers)], default_initializer=zero)
        self.step = self.create_parameter([1], dtype="int64", default_initializer=nn.initializer.Constant(0))
        self.step.stop_gradient = True

    def forward(  # type: ignore[override]
        self, inputs: Union[Tensor, Sequence[Tensor]], details: bool = False
    ) -> Union[list[Tensor], Details]:
        """Predict.

        Args:
            inputs: the image, float32 [B, ...]; or a list of what ``TableInput`` reads of a table.
            details: return what the loss and the log need as well.
        Returns:
            The tasks' outputs, a list; with ``details`` a Details of it, the gates' weights, and the
            scalar sum of their penalties, each by its weight at this step.
        """
        mixed = self.mix(self.shared(inputs), towers=self.towers)
        return Details(mixed.outputs, mixed.weights, self._penalty(mixed.penalties)) if details else mixed.outputs

    def shared(self, inputs: Union[Tensor, Sequence[Tensor]]) -> Tensor:
        """What gates and experts read: the inputs joined, behind the bottom."""
        parts = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        x = parts[0] if self.inputs is None else self.inputs(*parts)
        return x if self.bottom is None else self.bottom(x)

    def forward_settled(self, weights: Sequence[np.ndarray], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Predict with gates whose weights are known: by task, NumPy array [n]. Other experts are left out."""
        mixtures = self.mix_settled(self.shared(inputs), weights)
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]

    def parameter_labels(self) -> dict[str, str]:
        """What to call each parameter in a message: Paddle's name -> structured name, and the task that owns it."""
        labels = {}
        for name, parameter in self.named_parameters():
            owner = re.match(r"(?:gates|towers)\.(\d+)", name)
            labels[parameter.name] = name + (f" (task {int(owner.group(1)) + 1})" if owner else "")
        return labels

    def _penalty(self, terms):
        entropy_weight = paddle.gather(
            constant(self.entropy_ramp), paddle.clip(self.step, 0, len(self.entropy_ramp) - 1)
        )
        if self.training:
            paddle.increment(self.step)
        weights = {**self.penalty_weights, "entropy": entropy_weight}
        weighted = [paddle.reshape(term * weights.get(name, 1.0), [1]) for name, term in terms.items()]
        return paddle.mean(paddle.add_n(weighted)) if weighted else paddle.mean(paddle.zeros([1]))
