"""Every hook that the tools look for in a model package: what it must have, and what it may have.

A package is a folder with a YAML file and the modules beside it: ``dygraph_model.py`` with ``DygraphModel``,
``static_model.py`` with ``StaticModel`` (one of the two is enough), and a reader with ``RecDataset``. A folder with
no wrapper and no ``net.py`` gets the project's wrappers (see package.py; examples/census is such a one). What they
must have is PaddleRec's interface, and any package that keeps it runs. What they may have is ours; ``offered``
looks it up, and each hook's default is in one of the ``Optional…`` classes below.

These classes are for reading and for type checkers. A package need not import or inherit from them.
"""

from collections.abc import Sequence
from typing import Any, Callable, Optional, Protocol, Union

Config = dict[str, Any]  # flat: dotted keys, such as runner.epochs
Names = Sequence[str]


class RecDataset(Protocol):
    """A reader: a ``paddle.io.Dataset`` or ``IterableDataset`` of samples, each a list of arrays or numbers.

    A ValueError or OSError that the constructor raises is shown to the user as a mistake in the data.
    """

    def __init__(self, file_list: list[str], config: Config) -> None:
        """``file_list``: the paths of what is in the data folder; ``config`` must have this name."""


class OptionalOfReader:
    """What a reader may offer as well."""

    # runner.* keys, without the prefix, that the reader reads: they are not refused as unknown. A dict name -> Key
    # gives their defaults too, for --print-config.
    config_keys: Union[Names, dict[str, Any]] = ()
    # (indices [B]) -> list of arrays [B, ...]: a whole batch at once, instead of example by example
    gather: Optional[Callable] = None
    # of a reader with __getitem__: (batch, indices [B], epoch, seed) -> a batch of the same examples, changed at random
    # for training: by seed, epoch and example alone, so that batch size, processes and a resume make no difference.
    # Evaluation does not call it.
    augment: Optional[Callable] = None
    # a command, run in the package's folder, that makes or gets the data: the message for missing data gives it
    how_to_get_data: Optional[str] = None
    # of an iterable reader: (epoch, seed or None, in_order) -> the epoch's rows in blocks, lists of arrays [rows, ...],
    # in an order that seed and epoch decide. in_order(function, items) gives function(item) for each item, in order;
    # it iterates items in each worker process, and calls function there.
    blocks: Optional[Callable] = None
    # of such a reader: in training each process of a job (``paddle.distributed.get_rank``) gets a share of its own from
    # ``blocks``. Otherwise each process reads everything, and the tools take its rows.
    shards_by_rank: bool = False
    # of such a reader: () -> number of rows of an epoch, of all processes, or None
    row_num: Optional[Callable] = None
    # (config) -> paths of the files that decide how raw values become inputs, such as a vocabulary: saves and exported
    # models have their digests, an exported model has copies too, and none is used with files of other digests
    encoding_files: Optional[Callable] = None
    # of an iterable reader: each worker process gives a share of its own, so num_workers may be > 0
    shards_by_worker: bool = False


class DygraphModel(Protocol):
    """The wrapper for the dynamic graph."""

    def create_model(self, config: Config) -> Any:
        """The network, a ``paddle.nn.Layer``."""

    def create_optimizer(self, dy_model: Any, config: Config) -> Any:
        """The optimizer over the network's parameters."""

    def create_metrics(self) -> tuple[list, Names]:
        """(metrics, names): equally long; a metric has ``accumulate()`` -> float and ``reset()``."""

    def train_forward(self, dy_model: Any, metrics_list: list, batch_data: list, config: Config) -> tuple:
        """(loss, metrics, tensors to print by name, or None) of a training step."""

    def infer_forward(self, dy_model: Any, metrics_list: list, batch_data: list, config: Config) -> tuple:
        """(metrics, tensors to print by name, or None) of an evaluation step."""


class StaticModel(Protocol):
    """The wrapper for the static graph. It builds into Paddle's default programs."""

    def __init__(self, config: Config) -> None: ...

    def create_feeds(self, is_infer: bool = False) -> list:
        """``paddle.static.data`` variables, in the reader's order."""

    def net(self, input: list, is_infer: bool = False) -> dict[str, Any]:
        """Variables to fetch and print by name; the loss is kept for ``create_optimizer``."""

    def infer_net(self, input: list) -> dict[str, Any]:
        """The same for evaluation."""

    def create_optimizer(self, strategy: Any = None) -> Any:
        """Minimize the kept loss."""


class OptionalOfModel:
    """What either wrapper may offer as well."""

    # every key of the package with its default, for --print-config
    config_defaults: Config = {}
    # (flat config) -> {key: value}: the keys that decide what the network computes. A save fits no other values.
    network_config: Optional[Callable[[Config], Config]] = None
    # What the tools may know of the network, once it is built: an object that may have the attributes
    # parameter_labels (parameter's name -> what to call it in a message), values_at_end (names of printed values
    # that describe the network, not a batch: an epoch's is the one at its end), uses_all_cores (whether the network's
    # operators run on all cores in training: then a program runs them one after another, and to_static: auto compiles
    # nothing), and finite_parameters (of a static program in training, pair: a variable, of which an element is 0 if a
    # parameter is not finite after a step, and the parameters' names). For several processes: expert_parameters (by
    # expert, the names of its parameters) and experts_in_use (of the training step, a tensor or variable: by expert, 0
    # if its gradients are zero), reduces_within (the network itself reduces over the processes), and shards (what they
    # share out, or None: an object with alone and elsewhere, {structured name: name} of the parameters and statistics
    # that this process, or another, holds alone, and rows, {structured name: (name, begin, end, rows in all)}). Called
    # with the network in the dynamic graph, without arguments in the static one.
    network_facts: Optional[Callable] = None
    # printed name -> whether higher is better, for keep_best, patience and best. Objects of create_metrics may have an
    # attribute of this name instead. Paddle's metrics and names that begin with loss need none; the rest is guessed.
    higher_is_better: Optional[Any] = None
    # what the log says of the network after an epoch's line: (network) in the dynamic graph, (parameter's name ->
    # array) in the static one -> {title: {name: number}}, such as {"task 1 experts": {"2": 0.62, "5": 0.38}}
    status: Optional[Callable] = None


class OptionalOfStaticModel(OptionalOfModel):
    """What the wrapper for the static graph may offer as well."""

    # () -> a loader: called without arguments it iterates batches. Used if reader_type is CustomizeDataLoader.
    create_data_loader: Optional[Callable] = None
    # (feeds, is_infer) -> three dicts name -> Variable: what is printed, what update_metrics reads, and what an
    # exported model may offer. Called instead of net and infer_net.
    build: Optional[Callable] = None
    # () -> (metrics, names), kept over an epoch; (metrics, what it reads: name -> array, batch): count a batch.
    create_metrics: Optional[Callable] = None
    update_metrics: Optional[Callable] = None
    # () -> names of the outputs of an exported model that are enough for update_metrics; tools/predict.py then has the
    # same metrics as an evaluation
    observed_outputs: Optional[Callable] = None
    # (batch): raise ValueError if the program could not take it, or would read beyond a table
    check_batch: Optional[Callable] = None
    # (feeds, parameter name -> array) -> {name: Variable}: a network built for these weights alone, to export
    export_net: Optional[Callable] = None
    # () -> the tasks that an exported model says it has: a list of dicts, see engine/serving/signature.py
    export_tasks: Optional[Callable] = None


def offered(owner, name):
    """An optional hook of a package.

    Args:
        owner: a reader, a wrapper, or the class of one.
        name: of the hook.
    Returns:
        What the package has under that name, or the hook's default.
    """
    for kind in (OptionalOfReader, OptionalOfStaticModel):
        if hasattr(kind, name):
            return getattr(owner, name, getattr(kind, name))
    raise AttributeError(f"{name} is not a hook; those are in {__name__}")
