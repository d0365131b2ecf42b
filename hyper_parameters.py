"""The table of ``hyper_parameters.*`` keys and its checks; builds ``net.py``'s network from a config."""

import dataclasses
import difflib
import importlib
import logging
import math

import numpy as np
from paddle import nn

import net
import tasks as kinds
import training

LOG = logging.getLogger("dselect_k")
PREFIX = "hyper_parameters."
GATES = (
    "dselect_k", "dselect_k_per_example", "softmax", "top_k", "noisy_top_k", "random", "shared_bottom", "single_task"
)  # fmt: skip
PER_EXAMPLE = ("dselect_k_per_example", "softmax", "top_k", "noisy_top_k")


def _key(default, kind, meaning, network=False, low=None, above=None, high=None, choices=None):
    """One key.

    Args:
        default: its value where the config has none.
        kind: int, float, str (one of ``choices``), "name" (one of ``choices``, or module.object of the
            user's), "sizes" (list of whole numbers), "numbers" (list of numbers >= 0) or "tasks".
        meaning: in a few words.
        network: whether it decides what the network computes. If so, a save fits no other value.
        low, above, high: its range; ``low`` and ``high`` are allowed, ``above`` is not.
        choices: allowed texts.
    """
    facts = {"kind": kind, "meaning": meaning, "network": network}
    return dataclasses.field(
        default=default, metadata={**facts, "low": low, "above": above, "high": high, "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """Every key, checked. A field ``optimizer_x`` is the key ``hyper_parameters.optimizer.x``; ``input_x`` likewise.

    Raises:
        ValueError: a value has the wrong type, is out of range, or does not go with another.
    """

    input_image: tuple = _key((1, 36, 36), "sizes", "channels, height and width of an image", network=True, high=65536)
    input_dense_size: int = _key(
        0, int, "number of dense features, where an example is no image", network=True, low=0, high=1000000
    )
    input_vocabulary_sizes: tuple = _key(
        (), "sizes", "number of ids of each sparse field, where an example is no image", network=True, high=2**31
    )
    input_embedding_size: int = _key(8, int, "width of an id's embedding", network=True, low=1, high=65536)
    bottom: str = _key(
        "none",
        str,
        "what gates and experts share: nothing, the convolutions (cnn), or linear layers (mlp)",
        network=True,
        choices=("none", "cnn", "mlp"),
    )
    bottom_sizes: tuple = _key((128,), "sizes", "widths of an mlp bottom's layers", network=True, high=65536)
    gate: str = _key(
        "dselect_k",
        "name",
        "kind of gate; dselect_k has free parameters, the same for every example, dselect_k_per_example computes them "
        "from the example; the others are to compare with; module.function makes a gate of your own",
        network=True,
        choices=GATES,
    )
    tasks: tuple = _key(
        (),
        "tasks",
        "a list of mappings, each with classes: n, or kind: binary, or kind: regression, and optional name, weight, "
        "tower_sizes, positive_weight, huber_delta; empty: task_num tasks of class_num classes",
        network=True,
    )
    task_num: int = _key(2, int, "number of tasks, where tasks is empty", network=True, low=1, high=64)
    class_num: int = _key(
        10, int, "number of classes of each task, where tasks is empty", network=True, low=2, high=65536
    )
    task_weights: tuple = _key(
        (), "numbers", "weight of each task in the loss, where tasks is empty; empty: 1 for each"
    )
    task_balance: str = _key(
        "fixed",
        str,
        "how losses are summed: by the tasks' weights, or by learned variances too (Kendall et al. 2018)",
        network=True,
        choices=("fixed", "uncertainty"),
    )
    expert: str = _key(
        "auto",
        "name",
        "kind of expert; auto: cnn for an image, mlp for a vector; module.function makes a layer of your own",
        network=True,
        choices=("auto", "cnn", "mlp"),
    )
    expert_num: int = _key(8, int, "number of experts, shared by all tasks", network=True, low=1, high=1024)
    expert_size: int = _key(50, int, "width of an expert's output", network=True, low=1, high=65536)
    expert_hidden_sizes: tuple = _key(
        (64,), "sizes", "widths of an mlp expert's hidden layers", network=True, high=65536
    )
    expert_norm: str = _key(
        "batch",
        str,
        "norm of an expert's hidden layers: batch, group (mlp: layer norm), or none (the paper's); with the latter two "
        "a per-example gate's experts run on just their own examples in training too",
        network=True,
        choices=net.NORMS,
    )
    expert_activation: str = _key(
        "relu", str, "activation of an mlp expert", network=True, choices=tuple(net.ACTIVATIONS)
    )
    expert_dropout: float = _key(
        0.0, float, "share of an mlp expert's hidden numbers that training leaves out", low=0, high=0.99
    )
    top_k: int = _key(2, int, "at most this many experts for a task", network=True, low=1, high=1024)
    gamma: float = _key(1.0, float, "width of the smooth-step's band", network=True, above=0)
    tower_size: int = _key(50, int, "width of a tower's two hidden layers", network=True, low=1, high=65536)
    entropy_weight: float = _key(0.1, float, "strength of the pull of each selector to one expert", low=0)
    entropy_schedule: str = _key(
        "constant",
        str,
        "how that strength grows from 0 over entropy_ramp_steps",
        choices=("constant", "linear", "cosine"),
    )
    entropy_ramp_steps: int = _key(1000, int, "training steps until entropy_weight is reached", low=1, high=1000000)
    balance_weight: float = _key(0.01, float, "strength of the pull of top-k gates to equal loads", low=0)
    optimizer_class: str = _key(
        "adam",
        str,
        "which optimizer; lazy_adam trains just the embeddings of a batch's ids, in trainer.py with to_static: false",
        choices=("adam", "adamw", "lazy_adam", "sgd"),
    )
    optimizer_learning_rate: float = _key(0.001, float, "the rate; with a schedule, its highest", above=0)
    optimizer_schedule: str = _key(
        "constant", str, "course of the rate over the whole training", choices=("constant", "cosine", "one_cycle")
    )
    optimizer_warmup_steps: int = _key(0, int, "training steps over which the rate rises from 0", low=0)
    optimizer_gate_learning_rate_factor: float = _key(1.0, float, "the gates' rate over the others'", above=0)
    optimizer_weight_decay: float = _key(
        0.0, float, "L2 penalty (adam, sgd) or decoupled decay (adamw) of all but the gates; 0 for lazy_adam", low=0
    )
    optimizer_momentum: float = _key(0.9, float, "momentum of sgd", low=0)
    optimizer_clip_norm: float = _key(0.0, float, "greatest norm of all gradients together; 0: no limit", low=0)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _checked(_dotted(field), getattr(self, field.name), field.metadata)
            object.__setattr__(self, field.name, value)
        self._check_together()

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
        given = {key[len(PREFIX) :]: value for key, value in config.items() if key.startswith(PREFIX)}
        given = _translate_paddlerec(given)
        fields = {_dotted(field)[len(PREFIX) :]: field.name for field in dataclasses.fields(cls)}
        for key in given:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                raise ValueError(
                    f"{PREFIX}{key} is not a key of this model"
                    + (f"; did you mean {PREFIX}{near[0]}?" if near else f". It has: {', '.join(sorted(fields))}.")
                )
        return cls(**{fields[key]: value for key, value in given.items()})

    @classmethod
    def defaults(cls):
        """Every key of this model, dotted as in a config, with its default."""
        return {_dotted(field): field.default for field in dataclasses.fields(cls)}

    @property
    def per_example(self):
        """Whether the gates have weights for each example; None for a gate of the user's."""
        return self.gate in PER_EXAMPLE if self.gate in GATES else None

    @property
    def is_table(self):
        """Whether an example is dense features and ids, not an image."""
        return bool(self.input_dense_size or self.input_vocabulary_sizes)

    @property
    def sparse_gradients(self):
        """Whether there are embeddings, and the optimizer moves just those of a batch's ids."""
        plain_sgd = self.optimizer_class == "sgd" and not self.optimizer_momentum and not self.optimizer_weight_decay
        return bool(self.input_vocabulary_sizes) and (plain_sgd or self.optimizer_class == "lazy_adam")

    def task_list(self):
        """The tasks, as ``tasks.Task``."""
        if not self.tasks:
            weights = self.task_weights or [1.0] * self.task_num
            towers = (self.tower_size, self.tower_size)
            return [
                kinds.Task(kinds.Classes(self.class_num), str(t + 1), weight, towers)
                for t, weight in enumerate(weights)
            ]
        return [_task(t, dict(entry), self.tower_size) for t, entry in enumerate(self.tasks)]

    def inputs(self):
        """What the network reads of an example, in the reader's order: a list of (name, shape, dtype)."""
        if not self.is_table:
            return [("image", list(self.input_image), "float32")]
        dense = [("dense", [self.input_dense_size], "float32")] if self.input_dense_size else []
        return dense + ([("ids", [len(self.input_vocabulary_sizes)], "int64")] if self.input_vocabulary_sizes else [])

    def split(self, batch):
        """A batch in the reader's order -> (inputs, labels of the tasks). Surplus items are passed over.

        Raises:
            ValueError: the reader gives fewer labels than there are tasks.
        """
        input_num, task_num = len(self.inputs()), len(self.task_list())
        inputs, labels = list(batch[:input_num]), list(batch[input_num : input_num + task_num])
        if len(labels) < task_num:
            raise ValueError(
                f"the reader gives {len(labels)} labels, but there are {task_num} tasks ({PREFIX}tasks or task_num). "
                f"Set task_num to {len(labels)}, or use a reader with {task_num} labels."
            )
        return inputs, labels

    def check_batch(self, batch):
        """Raise ValueError if a batch has an id outside its vocabulary, or a class that there is not."""
        inputs, labels = self.split(batch)
        for (name, *_), item in zip(self.inputs(), inputs):
            if name == "ids":
                _check_ids(np.asarray(item), self.input_vocabulary_sizes)
        for task, label in zip(self.task_list(), labels):
            if isinstance(task.kind, kinds.Classes) and np.asarray(label).max() >= task.kind.class_num:
                raise ValueError(
                    f"a label of task {task.suffix.strip('_')} is {np.asarray(label).max()}, but its classes are 0 to "
                    f"{task.kind.class_num - 1}. Set its number of classes (class_num, or classes in tasks)."
                )

    def _check_together(self):
        if self.gate not in ("shared_bottom", "single_task", "softmax") and self.top_k > self.expert_num:
            raise ValueError(
                f"{PREFIX}top_k is {self.top_k}, but there are only {self.expert_num} experts "
                f"(expert_num). Set top_k to a whole number from 1 to {self.expert_num}."
            )
        if self.task_weights and len(self.task_weights) != self.task_num:
            raise ValueError(
                f"{PREFIX}task_weights has {len(self.task_weights)} numbers, but there are "
                f"{self.task_num} tasks (task_num). Give one for each task, or an empty list."
            )
        if self.optimizer_schedule == "one_cycle" and self.optimizer_warmup_steps:
            raise ValueError(
                f"{PREFIX}optimizer.warmup_steps is {self.optimizer_warmup_steps}, but the "
                "one_cycle schedule has a warm-up of its own. Set it to 0, or use another schedule."
            )
        if self.optimizer_class == "lazy_adam" and (self.optimizer_weight_decay or not self.input_vocabulary_sizes):
            raise ValueError(
                f"{PREFIX}optimizer.class is lazy_adam, which needs embeddings (input.vocabulary_sizes), and no "
                "weight_decay, which would move all of them at each step. Use adam, or change these keys."
            )
        if len(self.input_image) != 3:
            raise ValueError(f"{PREFIX}input.image is {list(self.input_image)}, but must be [channels, height, width].")
        if self.is_table and (self.bottom == "cnn" or self.expert == "cnn"):
            raise ValueError(
                f"{PREFIX}input.dense_size or vocabulary_sizes describe a table, but bottom or expert is cnn. Use mlp."
            )
        if self.bottom != "none" and self.expert == "cnn":
            raise ValueError(f"{PREFIX}expert is cnn, but behind the bottom {self.bottom} there is no image. Use mlp.")
        names = [task.suffix for task in self.task_list()]  # which checks each
        if len(set(names)) < len(names):
            raise ValueError(f"{PREFIX}tasks has two tasks of one name: {', '.join(names)}.")


def network_config(config):
    """The keys that decide what the network computes, and their values in force: dotted key -> value.

    A save fits any config that agrees in these. The other keys shape the training alone.

    Args:
        config: flat config dict, of this run or of a save.
    Raises:
        ValueError: as ``HyperParameters.from_config``.
    """
    hyper = HyperParameters.from_config(config)
    values = {_dotted(f): getattr(hyper, f.name) for f in dataclasses.fields(hyper) if f.metadata["network"]}
    of_training = ("weight", "positive_weight", "huber_delta")  # what shapes the training alone
    values[PREFIX + "tasks"] = [{k: v for k, v in task.items() if k not in of_training} for task in hyper.tasks]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


# ------------------------------------------------------------------------------ the network


def build(hyper):
    """The network that ``hyper`` describes.

    Layers are created in a fixed order, so that both graphs give their parameters the same names.

    Args:
        hyper: HyperParameters.
    Returns:
        net.MultiTaskNetwork.
    """
    inputs = bottom = None
    shape = list(hyper.input_image)
    if hyper.is_table:
        inputs = net.TableInput(
            hyper.input_dense_size, hyper.input_vocabulary_sizes, hyper.input_embedding_size, hyper.sparse_gradients
        )
        shape = [inputs.out_size]
    if hyper.bottom == "cnn":
        bottom = net.CNN(shape, hyper.expert_norm)
    elif hyper.bottom == "mlp":
        bottom = net.MLP(math.prod(shape), hyper.bottom_sizes, hyper.expert_norm, activate_output=True)
    if bottom is not None:
        shape = [bottom.out_size]
    tasks = hyper.task_list()
    expert_num = {"shared_bottom": 1, "single_task": len(tasks)}.get(hyper.gate, hyper.expert_num)
    experts = [_expert(hyper, shape) for _ in range(expert_num)]
    gates = [_gate(hyper, t, expert_num, math.prod(shape)) for t in range(len(tasks))]
    towers = [net.MLP(hyper.expert_size, [*task.tower_sizes, task.kind.out_size]) for task in tasks]
    return net.MultiTaskNetwork(
        experts, gates, towers, hyper.expert_size, bottom, inputs,
        entropy_ramp=training.entropy_ramp(hyper.entropy_weight, hyper.entropy_schedule, hyper.entropy_ramp_steps),
        penalty_weights={"balance": hyper.balance_weight},
        learned_balance=hyper.task_balance == "uncertainty",
    )  # fmt: skip


def values_at_end(network):
    """Names of the printed numbers that describe the network, not a batch: an epoch's is the one at its end."""
    return () if network.per_example else ("experts_used",)


def _expert(hyper, shape):
    """One expert over examples of ``shape``."""
    kind = hyper.expert
    if kind == "auto":
        kind = "mlp" if len(shape) == 1 else "cnn"
    if kind == "cnn":
        return net.CNNExpert(shape, hyper.expert_size, hyper.expert_norm)
    if kind == "mlp":
        return net.MLP(
            math.prod(shape), [*hyper.expert_hidden_sizes, hyper.expert_size], hyper.expert_norm,
            hyper.expert_activation, hyper.expert_dropout, activate_output=True,
        )  # fmt: skip
    expert = _own("expert", kind)(shape, hyper.expert_size)
    if not isinstance(expert, nn.Layer):
        raise ValueError(
            f"{PREFIX}expert is {kind!r}, but that gives a {type(expert).__name__}, not a paddle.nn.Layer."
        )
    return expert


def _gate(hyper, task, expert_num, feature_size):
    """The gate of task number ``task``."""
    factor, kind = hyper.optimizer_gate_learning_rate_factor, hyper.gate
    if kind in ("dselect_k", "dselect_k_per_example"):
        features = feature_size if kind == "dselect_k_per_example" else 0
        return net.DSelectKGate(expert_num, hyper.top_k, hyper.gamma, features, factor)
    if kind == "softmax":
        return net.SoftmaxGate(expert_num, feature_size, factor)
    if kind in ("top_k", "noisy_top_k"):
        return net.TopKGate(expert_num, hyper.top_k, feature_size, kind == "noisy_top_k", factor)
    if kind == "random":
        return net.FixedGate.of_random_experts(expert_num, hyper.top_k, seed=task)
    if kind == "shared_bottom":
        return net.FixedGate([1.0])
    if kind == "single_task":
        return net.FixedGate([float(i == task) for i in range(expert_num)])
    gate = _own("gate", kind)(expert_num, hyper.top_k, feature_size)
    if not all(hasattr(gate, name) for name in ("expert_num", "per_example", "penalties")):
        raise ValueError(f"{PREFIX}gate is {kind!r}, but that gives a {type(gate).__name__}, not a net.Gate.")
    for parameter in gate.parameters():
        parameter.optimize_attr["learning_rate"] *= factor
    return gate


def _own(key, path):
    """What a config names as module.object, of a module beside the config or installed."""
    module_name, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{PREFIX}{key} is {path!r}, but {name} cannot be imported from {module_name} ({error})."
        ) from error


# ------------------------------------------------------------------------ values of the config


def _check_ids(ids, sizes):
    wrong = (ids < 0) | (ids >= np.asarray(sizes))
    if wrong.any():
        row, field = (int(i[0]) for i in np.nonzero(wrong))
        raise ValueError(
            f"example {row} of a batch has the id {ids[row, field]} in sparse field {field}, whose ids are 0 to "
            f"{sizes[field] - 1} ({PREFIX}input.vocabulary_sizes)."
        )


TASK_KEYS = ("name", "kind", "classes", "weight", "tower_sizes", "positive_weight", "huber_delta")


def _task(number, entry, tower_size):
    """The task that an entry of ``hyper_parameters.tasks`` describes."""
    where = f"{PREFIX}tasks[{number}]"
    unknown = sorted(set(map(str, entry)) - set(TASK_KEYS))
    if unknown:
        raise ValueError(f"{where} has the key {unknown[0]}, but a task has: {', '.join(TASK_KEYS)}.")
    kind = entry.get("kind", "classes" if "classes" in entry else None)
    number_of = {
        "classes": ("whole number >= 2", lambda x: x >= 2 and x == int(x)), "weight": ("number >= 0", lambda x: x >= 0),
        "positive_weight": ("number > 0", lambda x: x > 0), "huber_delta": ("number >= 0", lambda x: x >= 0),
    }  # fmt: skip
    for key, (wanted, is_right) in number_of.items():
        value = _number(entry[key]) if key in entry else None
        if key in entry and (value is None or not is_right(value)):
            raise ValueError(f"{where}.{key} is {entry[key]!r}, but must be a {wanted}.")
    only = {"classes": "classes", "positive_weight": "binary", "huber_delta": "regression"}
    for key, owner in only.items():
        if key in entry and kind != owner:
            raise ValueError(f"{where}.{key} is for a task of kind {owner}, but the kind is {kind!r}.")
    if kind == "classes" and "classes" in entry:
        made = kinds.Classes(int(_number(entry["classes"])))
    elif kind == "binary":
        made = kinds.Binary(float(_number(entry.get("positive_weight", 1.0))))
    elif kind == "regression":
        made = kinds.Regression(float(_number(entry.get("huber_delta", 0.0))))
    else:
        raise ValueError(f"{where} is {entry!r}, but needs classes: n, or kind: binary, or kind: regression.")
    name = entry.get("name")
    if name is not None and not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"{where}.name is {name!r}, but must be a word of letters, digits and _.")
    sizes = _sizes(f"{where}.tower_sizes", entry.get("tower_sizes", [tower_size] * 2), 65536, "widths of hidden layers")
    return kinds.Task(made, f"_{name}" if name else str(number + 1), float(_number(entry.get("weight", 1.0))), sizes)


def _dotted(field):
    name = field.name
    for section in ("optimizer", "input"):
        name = name.replace(f"{section}_", f"{section}.", 1) if name.startswith(f"{section}_") else name
    return PREFIX + name


def _checked(key, value, rule):
    """``value`` as the type that ``rule`` asks for, or a ValueError that names ``key``."""

    def wrong(wanted):
        return ValueError(f"{key} is {value!r}, but must be {wanted}: {rule['meaning']}.")

    kind = rule["kind"]
    if kind in (str, "name"):
        text = str(value)
        if text.lower() in rule["choices"]:
            return text.lower()
        if kind == "name" and all(part.isidentifier() for part in text.split(".")) and "." in text:
            return text
        raise wrong("one of " + ", ".join(rule["choices"]) + (", or module.name" if kind == "name" else ""))
    if kind == "sizes":
        return _sizes(key, value, rule["high"], rule["meaning"])
    if kind == "numbers":
        numbers = [_number(item) for item in value] if isinstance(value, (list, tuple)) else [None]
        if any(x is None or x < 0 for x in numbers) or (numbers and not any(numbers)):
            raise wrong("a list of numbers >= 0, not all of them 0")
        return tuple(numbers)
    if kind == "tasks":
        if not isinstance(value, (list, tuple)) or not all(isinstance(entry, dict) for entry in value):
            raise wrong("a list of mappings, such as [{name: income, kind: binary}]")
        return tuple(value)
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


def _sizes(key, value, high, meaning):
    """A list of whole numbers from 1 to ``high``, as a tuple."""
    numbers = [_number(item) for item in value] if isinstance(value, (list, tuple)) else [None]
    if any(x is None or x != int(x) or not 1 <= x <= high for x in numbers):
        raise ValueError(f"{key} is {value!r}, but must be a list of whole numbers from 1 to {high}: {meaning}.")
    return tuple(int(x) for x in numbers)


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
