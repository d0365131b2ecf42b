"""The ``hyper_parameters.*`` keys of a config, declared and checked."""

import dataclasses
import logging
from typing import Any

import numpy as np
import paddle

import net
from dselect_k_model import tasks, weights
from dselect_k_model.config_key import NETWORK, STEP, Key, check_all
from dselect_k_model.experts import EXPERTS
from dselect_k_model.gates import GATES, options_in_force
from dselect_k_model.kinds import KINDS
from dselect_k_model.metrics import takes

LOG = logging.getLogger("dselect_k")
PREFIX = tasks.PREFIX
OPTIONS = ("gate_options", "expert_options")  # sections whose keys a gate or an expert declares


def _field(*args, **kwargs):
    key = Key(*args, **kwargs)
    return dataclasses.field(default=key.default, metadata={"key": key})


@dataclasses.dataclass(frozen=True)
class HyperParameters:
    """Every key, checked. A field ``optimizer_x`` is the key ``hyper_parameters.optimizer.x``; ``input_x`` likewise.

    Raises:
        ValueError: a value has the wrong type, is out of range, or does not go with another.
    """

    input_image: tuple = _field(
        "sizes", (1, 36, 36), "The channels, height and width of an image.", high=65536, decides=NETWORK
    )
    input_dense_size: int = _field(
        int,
        0,
        "The number of numeric features, where an example is a row of a table.",
        low=0,
        high=1000000,
        decides=NETWORK,
    )
    input_vocabulary_sizes: tuple = _field(
        "sizes",
        (),
        "The number of ids of each categorical feature, where an example is a row of a table.",
        high=2**31,
        decides=NETWORK,
    )
    input_list_sizes: tuple = _field(
        "sizes",
        (),
        "The number of ids of each feature that is a list of ids, where an example is a row of a table.",
        high=2**31,
        decides=NETWORK,
    )
    input_list_pooling: tuple = _field(
        "texts",
        (),
        "For each list of ids, how its embeddings become one: mean or sum; if empty, the mean for all.",
        decides=NETWORK,
    )
    input_shared_embeddings: tuple = _field(
        list,
        (),
        "Groups of features that share their embeddings, such as [[0, 2]]: the numbers of features from 0, first "
        "those of vocabulary_sizes, then those of list_sizes.",
        decides=NETWORK,
    )
    input_embedding_size: int = _field(int, 8, "The width of an id's embedding.", low=1, high=65536, decides=NETWORK)
    input_shard_embedding: bool = _field(
        bool,
        False,
        "With several processes: whether each holds only its share of the embeddings' rows, to save memory, or all of "
        "them.",
    )
    input_example_weights: bool = _field(
        bool,
        False,
        "Whether the reader gives each example's weight, >= 0, after the labels: in losses and metrics, a weight of 2 "
        "counts as the example twice.",
        decides=STEP,
    )
    input_groups: bool = _field(
        bool,
        False,
        "Whether the reader gives each example's group, a whole number, at its end: for the metrics gauc, hit_rate_K "
        "and ndcg_K.",
    )
    bottom: str = _field(
        "choice",
        "none",
        "The layers that gates and experts share: none, convolutions (cnn), or linear layers (mlp).",
        choices=("none", "cnn", "mlp"),
        decides=NETWORK,
    )
    bottom_sizes: tuple = _field(
        "sizes", (128,), "The widths of the layers of an mlp bottom.", high=65536, decides=NETWORK
    )
    gate: str = _field(
        "name",
        "dselect_k",
        "The gate. dselect_k has free parameters, shared by all examples; dselect_k_per_example computes them from "
        "the example; comet, comet_shared, sparsemax, entmax15 and relu_routing are other gates whose weights become "
        "exactly 0; the others are baselines; those named _shared have the same weights for all examples; "
        "module.function makes a gate of your own.",
        choices=tuple(GATES),
        decides=NETWORK,
    )
    gate_search_steps: int = _field(
        int,
        0,
        "The number of training steps, from the first, in which each gate searches for better experts by a trained "
        "permutation (COMET's local search); all experts are computed in them. 0: no search. Of several processes "
        "each draws noise of its own.",
        low=0,
        high=1000000,
        decides=NETWORK,
    )
    tasks: tuple = _field(
        "mappings",
        (),
        f"The tasks, each with a kind ({', '.join(KINDS)}, or module.name of your own) and its keys; if empty, there "
        "are task_num tasks of class_num classes.",
        decides=NETWORK,
    )
    task_num: int = _field(int, 2, "The number of tasks, where tasks is empty.", low=1, high=64, decides=NETWORK)
    class_num: int = _field(
        int, 10, "The number of classes of each task, where tasks is empty.", low=2, high=65536, decides=NETWORK
    )
    task_weights: tuple = _field(
        "weights", (), "The weight of each task in the loss, where tasks is empty; if empty, 1 for each."
    )
    task_balance: str = _field(
        "choice",
        "fixed",
        "How the tasks' losses are summed: by their weights (fixed), or by learned variances too (uncertainty, "
        "Kendall et al. 2018).",
        choices=("fixed", "uncertainty"),
        decides=NETWORK,
    )
    expert: str = _field(
        "name",
        "auto",
        "The expert. auto is cnn for an image and mlp for a vector; module.function makes a layer of your own.",
        choices=tuple(EXPERTS),
        decides=NETWORK,
    )
    expert_num: int = _field(int, 8, "The number of experts, shared by all tasks.", low=1, high=1024, decides=NETWORK)
    expert_size: int = _field(int, 50, "The width of an expert's output.", low=1, high=65536, decides=NETWORK)
    expert_hidden_sizes: tuple = _field(
        "sizes", (64,), "The widths of the hidden layers of an mlp expert.", high=65536, decides=NETWORK
    )
    expert_norm: str = _field(
        "choice",
        "batch",
        "The norm of an expert's hidden layers: batch, group (layer norm in an mlp), or none (as in the paper). With "
        "group or none, a per-example gate's experts compute only their own examples in training too.",
        choices=net.NORMS,
        decides=NETWORK,
    )
    sync_batch_norm: bool = _field(
        bool,
        True,
        "Where several processes train: whether a batch norm's mean and variance are those of the whole batch, as in "
        "one process, or of each process's own rows, which needs no communication.",
        decides=STEP,
    )
    shard_experts: bool = _field(
        bool,
        False,
        "With several processes: whether each holds only its share of the experts, to which the rows of the batch "
        "travel (expert parallelism), or all of them. For per-example gates.",
    )
    expert_activation: str = _field(
        "choice", "relu", "The activation of an mlp expert.", choices=tuple(net.ACTIVATIONS), decides=NETWORK
    )
    kernels: Any = _field(
        "choice",
        "auto",
        "Whether training on a CPU uses this project's own kernels (make kernels), for what they can compute: a "
        "table's inputs, gates, experts, towers and the optimizer's step; auto does if they are compiled.",
        choices=(False, True, "auto"),
    )
    expert_dropout: float = _field(
        float, 0.0, "The share of an mlp expert's hidden units that training drops.", low=0, high=0.99
    )
    top_k: int = _field(int, 2, "The largest number of experts that a task uses.", low=1, high=1024, decides=NETWORK)
    gamma: float = _field(float, 1.0, "The width of the smooth-step's band.", above=0, decides=NETWORK)
    tower_size: int = _field(int, 50, "The width of a tower's two hidden layers.", low=1, high=65536, decides=NETWORK)
    entropy_weight: float = _field(
        float, 0.1, "The weight of the entropy term, which pulls each selector to a single expert.", low=0
    )
    entropy_schedule: str = _field(
        "choice",
        "constant",
        "How the entropy term's weight grows from 0 over entropy_ramp_steps.",
        choices=("constant", "linear", "cosine"),
    )
    entropy_ramp_steps: int = _field(
        int, 1000, "The number of training steps until entropy_weight is reached.", low=1, high=1000000
    )
    balance_weight: float = _field(
        float, 0.01, "The weight of the load-balancing term of top_k and noisy_top_k.", low=0
    )
    optimizer_class: str = _field(
        "choice",
        "adam",
        "The optimizer. lazy_adam updates only the embeddings of a batch's ids; it needs trainer.py with "
        "to_static: false.",
        choices=("adam", "adamw", "lazy_adam", "sgd"),
    )
    optimizer_learning_rate: float = _field(float, 0.001, "The learning rate; with a schedule, its peak.", above=0)
    optimizer_schedule: str = _field(
        "choice",
        "constant",
        "The schedule of the learning rate over the whole training. restarts is three times one_cycle, each twice as "
        "long as the one before.",
        choices=("constant", "cosine", "one_cycle", "restarts"),
    )
    optimizer_warmup_steps: int = _field(
        int, 0, "The number of training steps over which the learning rate rises from 0.", low=0
    )
    optimizer_gate_learning_rate_factor: float = _field(
        float, 1.0, "The gates' learning rate, as a multiple of the others'.", above=0
    )
    optimizer_weight_decay: float = _field(
        float,
        0.0,
        "The L2 penalty (adam, sgd) or decoupled decay (adamw) of all parameters but the gates'; 0 for lazy_adam.",
        low=0,
    )
    optimizer_momentum: float = _field(float, 0.9, "The momentum of sgd.", low=0)
    optimizer_clip_norm: float = _field(float, 0.0, "The largest norm of all gradients together; 0: no limit.", low=0)
    gate_options: Any = dataclasses.field(default_factory=dict)  # as the gate declares them
    expert_options: Any = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, (field, key) in _keys().items():
            object.__setattr__(self, field, key.check(PREFIX + name, getattr(self, field)))
        object.__setattr__(self, "task_list", self._task_list())
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
        sections = {section: {} for section in OPTIONS}
        for name in list(given):
            section, _, option = name.partition(".")
            if section in sections and option:
                sections[section][option] = given.pop(name)
        keys = _keys()
        check_all({name: key for name, (_, key) in keys.items()}, given, PREFIX)
        return cls(**{keys[name][0]: value for name, value in given.items()}, **sections)

    @classmethod
    def defaults(cls):
        """Every key of this model, dotted as in a config, with its default."""
        return {PREFIX + name: key.default for name, key in cls.keys().items()}

    @classmethod
    def keys(cls):
        """The declarations: name without ``hyper_parameters.`` -> Key."""
        return {name: key for name, (_, key) in _keys().items()}

    @property
    def is_table(self):
        """Whether an example is a row of a table, not an image."""
        return bool(self.input_dense_size or self.has_embeddings)

    @property
    def has_embeddings(self):
        """Whether an example has ids."""
        return bool(self.input_vocabulary_sizes or self.input_list_sizes)

    @property
    def sparse_gradients(self):
        """Whether there are embeddings, and the optimizer moves only those of a batch's ids."""
        plain_sgd = self.optimizer_class == "sgd" and not self.optimizer_momentum and not self.optimizer_weight_decay
        return self.has_embeddings and (plain_sgd or self.optimizer_class == "lazy_adam")

    def inputs(self):
        """What the network reads of an example, in the reader's order: a list of (name, shape, dtype).

        Floats are of Paddle's default dtype, as the network's parameters are.
        """
        if not self.is_table:
            return [("image", list(self.input_image), paddle.get_default_dtype())]
        dense = [("dense", [self.input_dense_size], paddle.get_default_dtype())] if self.input_dense_size else []
        ids = [("ids", [len(self.input_vocabulary_sizes)], "int64")] if self.input_vocabulary_sizes else []
        return dense + ids + [(f"list{i}", [-1], "int64") for i in range(len(self.input_list_sizes))]

    def labels(self):
        """The labels of the tasks, in the reader's order, likewise."""
        found = []
        for task in self.task_list:
            shape = [task.kind.label_size] if task.kind.label_size > 1 else []
            found.append((f"label{task.suffix}", shape, task.kind.label_dtype or paddle.get_default_dtype()))
        return found

    def about(self):
        """What the reader gives of an example after the labels, likewise: its weight, its group."""
        weight = [("weight", [], paddle.get_default_dtype())] if self.input_example_weights else []
        return weight + ([("group", [], "int64")] if self.input_groups else [])

    def split(self, batch):
        """A batch in the reader's order -> (inputs, labels of the tasks). Further items are ignored.

        Raises:
            ValueError: the reader gives fewer labels than there are tasks.
        """
        input_num, task_num = len(self.inputs()), len(self.task_list)
        inputs, labels = list(batch[:input_num]), list(batch[input_num : input_num + task_num])
        if len(labels) < task_num:
            raise ValueError(
                f"the reader gives {len(labels)} labels, but there are {task_num} tasks ({PREFIX}tasks or task_num). "
                f"Set task_num to {len(labels)}, or use a reader with {task_num} labels."
            )
        return inputs, labels

    def split_about(self, batch):
        """The items of a batch that ``about`` lists: ``weight`` and ``group`` -> [B]. What follows is ignored.

        Raises:
            ValueError: the reader does not give them.
        """
        names, begin = [name for name, *_ in self.about()], len(self.inputs()) + len(self.task_list)
        found = dict(zip(names, batch[begin:]))
        if len(found) < len(names):
            keys = {"weight": "example_weights", "group": "groups"}
            raise ValueError(
                f"the reader gives no {names[-1]} of an example, but {PREFIX}input.{keys[names[-1]]} is true. After "
                f"the labels it must give: {', '.join(names)}."
            )
        return found

    def check_batch(self, batch):
        """Raise ValueError if a batch has an id outside its vocabulary, or a label or a weight out of range."""
        inputs, labels = self.split(batch)
        for (name, *_), item in zip(self.inputs(), inputs):
            if name == "ids":
                _check_ids(np.asarray(item), self.input_vocabulary_sizes)
            elif name.startswith("list"):
                _check_list(np.asarray(item), int(name[len("list") :]), self.input_list_sizes)
        for task, label in zip(self.task_list, labels):
            label = np.asarray(label)
            if label.size != len(label) * task.kind.label_size:
                raise ValueError(
                    f"a label of task {task.title} has the shape {list(label.shape[1:])}, but must be "
                    f"[{task.kind.label_size}]."
                )
            wrong = task.kind.out_of_range(label)
            if wrong.any():
                raise ValueError(
                    f"a label of task {task.title} is {label[wrong].max()}, but must be {task.kind.label_words}. Set "
                    "its number of classes (class_num, or classes in tasks)."
                )
        for name, item in self.split_about(batch).items():
            _check_about(name, np.asarray(item), len(labels[0]))

    def _task_list(self):
        if self.tasks:
            return tasks.parse(self.tasks, self.tower_size)
        weights = self.task_weights or [1.0] * self.task_num
        entries = [{"classes": self.class_num, "weight": weight} for weight in weights]
        return tasks.parse(entries, self.tower_size)

    def _check_together(self):
        for task in self.task_list:
            self._check_metrics(task)
        if self.top_k > self.expert_num and getattr(GATES.get(self.gate), "has_top_k", True):
            raise ValueError(
                f"{PREFIX}top_k is {self.top_k}, but there are only {self.expert_num} experts "
                f"(expert_num). Set top_k to a whole number from 1 to {self.expert_num}."
            )
        if self.task_weights and len(self.task_weights) != self.task_num:
            raise ValueError(
                f"{PREFIX}task_weights has {len(self.task_weights)} numbers, but there are "
                f"{self.task_num} tasks (task_num). Give one for each task, or an empty list."
            )
        if self.optimizer_schedule in ("one_cycle", "restarts") and self.optimizer_warmup_steps:
            raise ValueError(
                f"{PREFIX}optimizer.warmup_steps is {self.optimizer_warmup_steps}, but the "
                f"{self.optimizer_schedule} schedule has a warm-up of its own. Set it to 0, or use another schedule."
            )
        if self.optimizer_class == "lazy_adam" and (self.optimizer_weight_decay or not self.has_embeddings):
            raise ValueError(
                f"{PREFIX}optimizer.class is lazy_adam, which needs embeddings (input.vocabulary_sizes), and no "
                "weight_decay, which would move all of them at each step. Use adam, or change these keys."
            )
        if self.input_shard_embedding and (not self.input_vocabulary_sizes or self.input_list_sizes):
            trouble = "lists of ids are not shared out" if self.input_list_sizes else "there are no embeddings"
            raise ValueError(
                f"{PREFIX}input.shard_embedding is true, but {trouble} (input.vocabulary_sizes, list_sizes). Set it to "
                "false."
            )
        if self.input_shard_embedding and self.sparse_gradients and self.optimizer_clip_norm:
            raise ValueError(
                f"{PREFIX}optimizer.clip_norm is {self.optimizer_clip_norm}, which needs the whole gradient, but "
                "that of the embeddings is sparse and spread over the processes (input.shard_embedding). Set it to "
                "0, or use adam."
            )
        self._check_lists()
        if len(self.input_image) != 3:
            raise ValueError(f"{PREFIX}input.image is {list(self.input_image)}, but must be [channels, height, width].")
        if self.is_table and (self.bottom == "cnn" or self.expert == "cnn"):
            raise ValueError(
                f"{PREFIX}input.dense_size or vocabulary_sizes describe a table, but bottom or expert is cnn. Use mlp."
            )
        if self.bottom != "none" and self.expert == "cnn":
            raise ValueError(f"{PREFIX}expert is cnn, but behind the bottom {self.bottom} there is no image. Use mlp.")
        for part, registry in (("gate", GATES), ("expert", EXPERTS)):
            options = getattr(self, f"{part}_options")
            row = registry.get(getattr(self, part))
            if options and row and not getattr(row, "keys", {}):
                raise ValueError(
                    f"{PREFIX}{part}_options has {', '.join(options)}, but the {part} {getattr(self, part)} "
                    f"takes no {part}_options. Remove them."
                )

    def _check_lists(self):
        """Refuse keys about lists of ids and shared embeddings that do not fit the features."""
        pooling, wanted = self.input_list_pooling, " or ".join(net.POOLINGS)
        if pooling and (len(pooling) != len(self.input_list_sizes) or not set(pooling) <= set(net.POOLINGS)):
            raise ValueError(
                f"{PREFIX}input.list_pooling is {list(pooling)}, but must have {wanted} for each of the "
                f"{len(self.input_list_sizes)} features of list_sizes."
            )
        sizes = [*self.input_vocabulary_sizes, *self.input_list_sizes]
        for group in self.input_shared_embeddings:
            fits = isinstance(group, (list, tuple)) and all(type(field) is int for field in group) and len(group) > 1
            if not fits or not {*group} <= {*range(len(sizes))} or len({sizes[field] for field in group}) > 1:
                raise ValueError(
                    f"{PREFIX}input.shared_embeddings has {group!r:.100}, but must have lists of at least two features "
                    f"with the same number of ids: features 0 to {len(sizes) - 1} have {sizes} ids."
                )
        named = [field for group in self.input_shared_embeddings for field in group]
        if len(set(named)) < len(named):
            raise ValueError(f"{PREFIX}input.shared_embeddings names a feature twice.")

    def _check_metrics(self, task):
        """Raise ValueError if a metric needs groups and there are none, or would ignore weights."""
        for metric in task.metrics:
            if takes(metric.update, "group") and not self.input_groups:
                raise ValueError(
                    f"{PREFIX}tasks: {task.title} has the metric {metric.name}, which needs the examples' groups, but "
                    f"{PREFIX}input.groups is false. Set it to true, with a reader that gives them, or choose others."
                )
        readers = {f"metric {metric.name}": metric.update for metric in task.metrics}
        for name, update in {**readers, "kind": task.kind.update_metrics}.items():
            if self.input_example_weights and not takes(update, "weight"):
                raise ValueError(
                    f"{PREFIX}tasks: {task.title} has a {name} that cannot use weights ({update.__qualname__} has no "
                    f"parameter weight), but {PREFIX}input.example_weights is true. Give it one, or choose another."
                )


def _keys():
    """Name without ``hyper_parameters.`` -> (field, Key)."""
    found = {}
    for field in dataclasses.fields(HyperParameters):
        section, _, rest = field.name.partition("_")
        name = f"{section}.{rest}" if section in ("optimizer", "input") else field.name
        if "key" in field.metadata:
            found[name] = field.name, field.metadata["key"]
    return found


def network_config(config):
    """The keys that decide what the network computes, and their values in force: dotted key -> value.

    A checkpoint fits any config that agrees in these. The other keys shape the training alone.

    Args:
        config: flat config dict, of this run or of a checkpoint.
    Raises:
        ValueError: as ``HyperParameters.from_config``.
    """
    hyper = HyperParameters.from_config(config)
    values = {PREFIX + name: getattr(hyper, field) for name, (field, key) in _keys().items() if key.decides == NETWORK}
    values[PREFIX + "tasks"] = [
        {key: value for key, value in entry.items() if key not in (*tasks.TRAINING_KEYS, *task.kind.training_keys)}
        for entry, task in zip(hyper.tasks, hyper.task_list)
    ]
    for part, registry in (("gate", GATES), ("expert", EXPERTS)):
        options = options_in_force(registry, getattr(hyper, part), getattr(hyper, f"{part}_options"), PREFIX + part)
        values.update({f"{PREFIX}{part}_options.{name}": value for name, value in options.items()})
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _check_about(name, item, size):
    """Raise ValueError if the weights or groups of a batch of ``size`` examples are none."""
    if item.size != size or (name == "group" and item.dtype.kind not in "iu"):
        wanted = "a number" if name == "weight" else "a whole number"
        raise ValueError(
            f"the item {name} of a batch is {list(item.shape)} {item.dtype}, but must be {wanted} an example."
        )
    if name == "weight" and weights.is_wrong(item).any():
        raise ValueError(f"the weight of an example is {item[weights.is_wrong(item)][0]}, but must be {weights.WORDS}.")


def _check_ids(ids, sizes):
    wrong = (ids < 0) | (ids >= np.asarray(sizes))
    if wrong.any():
        row, field = (int(i[0]) for i in np.nonzero(wrong))
        raise ValueError(
            f"example {row} of a batch has the id {ids[row, field]} in categorical feature {field}, whose ids are 0 to "
            f"{sizes[field] - 1} ({PREFIX}input.vocabulary_sizes)."
        )


def _check_list(ids, number, sizes):
    wrong = (ids < -1) | (ids >= sizes[number])
    if wrong.any():
        row = int(np.nonzero(wrong)[0][0])
        raise ValueError(
            f"example {row} of a batch has the id {ids[wrong][0]} in list {number}, whose ids are 0 to "
            f"{sizes[number] - 1}, and -1 after its end ({PREFIX}input.list_sizes)."
        )


def _translate_paddlerec(given):
    """Read the keys of a config written for PaddleRec's DSelect-k, and log once what is read otherwise."""
    notes = []
    given = dict(given)
    if "gate_num" in given:
        given.setdefault("task_num", given["gate_num"])
        del given["gate_num"]
        notes.append("gate_num is read as task_num (each task has a gate of its own)")
    for key in ("feature_size", "optimizer.strategy"):
        if key in given:
            del given[key]
            notes.append(f"{key} has no meaning here and is ignored")
    if notes:
        if "entropy_weight" not in given:
            notes.append("the gates have an entropy regulariser (set entropy_weight: 0 for none)")
        LOG.warning(
            "this config was written for PaddleRec's DSelect-k: %s; softmax is applied once, in the loss.",
            "; ".join(notes),
        )
    return given
