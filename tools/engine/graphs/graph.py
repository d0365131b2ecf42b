"""What the loop, checkpoints, validation, export and predict.py ask of a graph, whichever it is."""

import abc
import contextlib
import dataclasses
from typing import Any, Callable

from engine.errors import user_errors_raised_in
from engine.graphs import metric_state
from engine.graphs.shards import Shards
from engine.interface import offered
from engine.processes import Alone
from engine.spread import Copy


@dataclasses.dataclass(frozen=True)
class Step:
    """What a graph gives for a step.

    Args:
        tensors: name -> tensor or array, to print.
        metrics: function () -> the metrics so far, name -> float. Called only when a line is due.
        status: function () -> what the package says of the network. Likewise.
        sent_bytes: what this process gave for the average of gradients over several processes.
    """

    tensors: dict
    metrics: Callable
    status: Callable = dict
    sent_bytes: int = 0


class EvaluationGraph(abc.ABC):
    """A network that evaluates batches: in either graph, or exported."""

    name = ""  # dynamic, static or exported
    processes = Alone()  # of the job
    evaluates_by_rows = False  # whether all processes work on each batch, or on batches in turn

    def leave_to_another(self):
        """A batch of an evaluation is another process's: nothing to do, unless what is computed is kept in order."""
        return None

    @abc.abstractmethod
    def begin_evaluation(self):
        """Evaluation mode, and metrics from zero."""

    @abc.abstractmethod
    def infer_step(self, batch):
        """One step of evaluation: (Step, number of examples)."""

    @abc.abstractmethod
    def metrics(self):
        """The package's metrics so far: name -> float; nan where one is undefined."""

    def higher_is_better(self):
        """The direction of each metric that states one: name -> bool."""
        return {}

    def status(self):
        """What the package says of the network: title -> name -> number; {} if it says nothing."""
        return {}


class Graph(EvaluationGraph):
    """A package's network in the dynamic or the static graph, to train, evaluate, save and load.

    Args:
        package: engine.package.Package.
        config: flat config dict, passed on to the package.
        settings: the tools' own settings.
        job: "train", "infer" or "export".
        place: Paddle's place, which is its current device too.
    """

    module, wrapper = "", ""  # where a package has its wrapper for this graph, and its class

    def __init__(self, package, config, settings, job, place):
        self.package, self.config, self.settings, self.job, self.place = package, config, settings, job, place
        self.processes = settings.processes
        self.metrics_list, self.metric_names = [], []
        self.fetched_weights, self.fetched_optimizer = {}, {}  # see ``whole``
        self.exporter = None  # function (graph, folder) that writes an exported model of it, for use_inference

    @classmethod
    def find_wrapper(cls, package):
        """The package's class for this graph."""
        return package.find(cls.module, cls.wrapper, f"the wrapper for the {cls.name} graph")

    # ---- training and evaluation

    @abc.abstractmethod
    def begin_epoch(self, counted=None):
        """Training mode, and metrics from zero, or from what ``counted()`` gave in the middle of an epoch."""

    @abc.abstractmethod
    def train_step(self, batch):
        """One step of training.

        Returns:
            (Step, number of examples).
        Raises:
            NotFinite: a printed value, a gradient or an updated parameter is nan or infinite.
        """

    def end_epoch(self):
        self._advance_schedule("epoch")

    def _advance_schedule(self, when):
        schedule = self._schedule()
        if self.settings.lr_step == when and schedule is not None:
            schedule.step()

    @abc.abstractmethod
    def _schedule(self) -> Any:
        """The schedule of the learning rate; None if the rate is a number."""

    @abc.abstractmethod
    def snapshot(self):
        """A copy of all that a step which raises NotFinite may have changed, for ``restore``."""

    @abc.abstractmethod
    def restore(self, snapshot):
        """Undo the step since ``snapshot``."""

    # ---- metrics, and what is known of the network

    def _create_metrics(self):
        """(metrics, names), from zero."""
        return self.model.create_metrics()

    def _new_metrics(self, counted=None, path=None):
        self.metrics_list, self.metric_names = self._create_metrics()
        if counted is not None:
            metric_state.write(self.metrics_list, counted, path)

    def counted(self):
        """What the package's metrics have counted in this epoch, as plain numbers; on the first process, for all."""
        with metric_state.merged(self.metrics_list, self.metric_names, self.processes):
            return metric_state.read(self.metrics_list)

    def metrics(self):
        return metric_state.accumulated(self.metrics_list, self.metric_names, self.processes)

    def higher_is_better(self):
        return metric_state.directions(self.model, *self._create_metrics())

    def values_at_end(self):
        """Names of the printed values that describe the network, not a batch."""
        return list(getattr(self.facts(), "values_at_end", ()))

    def parameter_labels(self):
        """What to call a parameter in a message: its name -> text."""
        return getattr(self.facts(), "parameter_labels", {})

    @abc.abstractmethod
    def facts(self):
        """What the package's hook ``network_facts`` gives; None if it has none."""

    @contextlib.contextmanager
    def _counted_once(self, batch):
        """A batch that another process counts leaves this one's metrics as they were."""
        own = metric_state.snapshot(self.metrics_list) if isinstance(batch, Copy) else None
        yield
        if own is not None:
            metric_state.restore(self.metrics_list, own)

    def _describe(self, *of_network):
        describe = offered(self.model, "status")
        return {} if describe is None else describe(*of_network)

    def _errors_of_the_package(self):
        return user_errors_raised_in(*self.package.folders)

    # ---- what the processes share out

    @property
    def shards(self):
        """What this process does not hold, or holds alone."""
        return Shards(self.facts())

    @property
    def evaluates_by_rows(self):
        return self.shards.exist

    @contextlib.contextmanager
    def whole(self):
        """Within this context ``parameters`` and ``write`` of the first process have what the others hold too."""
        shards = self.shards
        if shards.exist:
            self.fetched_weights = shards.fetched(self.parameters(), self.processes)
            self.fetched_optimizer = shards.fetched(self._optimizer_state(), self.processes)
        try:
            yield
        finally:
            self.fetched_weights, self.fetched_optimizer = {}, {}

    # ---- checkpoints

    @abc.abstractmethod
    def parameters(self):
        """Weights and running statistics by the names they are saved under."""

    @abc.abstractmethod
    def _optimizer_state(self):
        """The optimizer's tensors by name."""

    @abc.abstractmethod
    def state_of_all(self):
        """All that a training step changes and every process holds: weights, optimizer's state ..., name -> array."""

    @abc.abstractmethod
    def set_state(self, state):
        """Set some of what ``state_of_all`` gave, on this process or another."""

    @abc.abstractmethod
    def for_evaluation(self, config, settings):
        """A graph for evaluation beside this one, whose network is its own: see ``take``."""

    @abc.abstractmethod
    def take(self, parameters):
        """Copy what ``parameters()`` of another graph of this network gives; what it has beyond that is ignored."""

    @abc.abstractmethod
    def write(self, folder):
        """Write weights and optimizer state into a checkpoint."""

    @abc.abstractmethod
    def read(self, folder, partly=False):
        """Load the weights of a checkpoint of either graph.

        Raises:
            UserError: they are missing, broken, or another network's.
        """

    @abc.abstractmethod
    def resume(self, folder, schedule_state):
        """Continue from the weights, optimizer state and schedule of a checkpoint that ``write`` filled."""

    @abc.abstractmethod
    def schedule_state(self):
        """Position of the learning rate's schedule; None if there is none, or the optimizer's state has it."""

    def write_data(self, parent):
        """Write what ``use_save_data`` asks for, a key of the static tools, into the folder of the checkpoints."""
