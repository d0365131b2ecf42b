"""The dynamic graph: a package's ``DygraphModel``, trained and evaluated eagerly."""

import bisect
import copy
import logging
import os

import numpy as np
import paddle

from engine.errors import user_errors, user_errors_raised_in
from engine.graphs import finite, metric_state
from engine.interface import offered
from engine.meter import Step
from engine.saves import encodings, manifests, same_network, weight_files

LOG = logging.getLogger("engine")


class DynamicGraph:
    """Same methods as ``StaticGraph``: the tools drive either.

    Args:
        package: engine.package.Package.
        config: flat config dict, passed on to the package.
        settings: the tools' own settings.
        job: "train" or "infer".
        place: Paddle's place, which is its current device too.
    """

    name = "dynamic"

    def __init__(self, package, config, settings, job, place):
        self.package, self.config, self.settings, self.place = package, config, settings, place
        self.model = self.find_wrapper(package)()
        with user_errors(config["yaml_path"]):
            self.net = self.model.create_model(config)
        if _is_to_be_compiled(settings.to_static, place):
            LOG.info("the network is compiled into a program (runner.to_static)")
            self.net = paddle.jit.to_static(self.net, full_graph=True)
        if job == "train":
            if settings.model_init_path is not None:
                self.read(settings.model_init_path, partly=True)
            with user_errors(config["yaml_path"]):
                self.optimizer = self.model.create_optimizer(self.net, config)
            labels = offered(self.model, "parameter_labels")
            self.trained = [(labels.get(p.name, name), p) for name, p in self.net.named_parameters()]

    @staticmethod
    def find_wrapper(package):
        """The package's class for this graph."""
        return package.find("dygraph_model", "DygraphModel", "the wrapper for the dynamic graph")

    def for_evaluation(self, config, settings):
        """A graph for evaluation beside this one, whose network is its own: see ``take``."""
        with paddle.utils.unique_name.guard():
            return DynamicGraph(self.package, config, settings, "infer", self.place)

    def take(self, parameters):
        """Copy what ``parameters()`` of another graph of this network gives."""
        for name, tensor in self.net.state_dict().items():
            tensor.set_value(parameters[name])

    def values_at_end(self):
        """Names of the printed scalars that describe the model, not a batch (``DygraphModel.values_at_end``)."""
        return offered(self.model, "values_at_end")

    def begin_epoch(self, counted=None):
        """Train mode, and metrics from zero, or from what ``counted()`` gave in the middle of an epoch."""
        self.net.train()
        self._new_metrics()
        if counted is not None:
            metric_state.write(self.metrics_list, counted, manifests.MANIFEST)

    def counted(self):
        """What the metrics have counted in this epoch, as plain numbers."""
        return metric_state.read(self.metrics_list)

    def begin_evaluation(self):
        """Evaluation mode, and metrics from zero."""
        self.net.eval()
        self._new_metrics()

    def _new_metrics(self):
        self.metrics_list, self.metric_names = self.model.create_metrics()

    def train_step(self, batch):
        """One step of training.

        Returns:
            (Step, number of examples).
        Raises:
            NotFinite: a number that the package gives, or a gradient, is nan or infinite; no
                parameter has been updated, but running statistics and metrics have been.
        """
        self.optimizer.clear_grad()
        loss, self.metrics_list, tensors = self._forward(self.model.train_forward, batch)
        finite.check_scalars({"loss": loss, **(tensors or {})})
        loss.backward()
        gradients = ((name, parameter.grad) for name, parameter in self.trained if parameter.grad is not None)
        finite.check(gradients, "the gradient of {names} is not finite")
        self.optimizer.step()
        self._move_schedule("batch")
        return Step(tensors or {}, self.metrics, self.status), len(batch[0])

    def snapshot(self):
        """A copy of all that a step which raises NotFinite may have changed, for ``restore``.

        The optimizer's moments are not among it: such a step ends before they change.
        """
        values = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        schedule = self._schedule()
        position = None if schedule is None else copy.deepcopy(schedule.state_dict())
        return values, copy.deepcopy(self.metrics_list), position

    def restore(self, snapshot):
        """Undo the step since ``snapshot``."""
        values, self.metrics_list, position = snapshot
        for name, tensor in self.net.state_dict().items():
            tensor.set_value(values[name])
        if position is not None:
            self._schedule().set_state_dict(position)

    def infer_step(self, batch):
        """One step of evaluation: (Step, number of examples)."""
        self.metrics_list, tensors = self._forward(self.model.infer_forward, batch)
        return Step(tensors or {}, self.metrics, self.status), len(batch[0])

    def _forward(self, forward, batch):
        batch = [paddle.to_tensor(item) if isinstance(item, np.ndarray) else item for item in batch]
        with user_errors_raised_in(*self.package.folders):
            return forward(self.net, self.metrics_list, batch, self.config)

    def end_epoch(self):
        self._move_schedule("epoch")

    def _move_schedule(self, when):
        schedule = self._schedule()
        if self.settings.lr_step == when and schedule is not None:
            schedule.step()

    def _schedule(self):
        """The schedule of the learning rate, or None if the rate is a number."""
        rate = self.optimizer._learning_rate  # Paddle has no public name for it
        return rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None

    def metrics(self):
        """The metrics so far: name -> float."""
        return {name: float(metric.accumulate()) for name, metric in zip(self.metric_names, self.metrics_list)}

    def status(self):
        """What the package says of the network: title -> name -> number; {} if it says nothing."""
        describe = offered(self.model, "status")
        return {} if describe is None else describe(self.net)

    def parameters(self):
        """Weights and running statistics by the names they are saved under."""
        return self.net.state_dict()

    def write(self, folder):
        """Write the weights and the optimizer's state."""
        paddle.save(self.net.state_dict(), os.path.join(folder, weight_files.DYNAMIC + ".pdparams"))
        paddle.save(self.optimizer.state_dict(), os.path.join(folder, weight_files.DYNAMIC + ".pdopt"))

    def resume(self, folder, schedule_state):
        """Take up weights and optimizer state, which has the schedule's, from a folder that ``write`` filled."""
        path, found = weight_files.read_optimizer_state(folder, weight_files.DYNAMIC)
        self._step_on_zeros(found)  # before reading the weights, which it may change
        self.read(folder)
        # Paddle itself would take any state here, and fail at the first step.
        mine = self.optimizer.state_dict()
        schedules = [state.pop("LR_Scheduler", {}) for state in (mine, found)]
        state = weight_files.fit_optimizer(mine, found, path)
        self.optimizer.set_state_dict({**state, "LR_Scheduler": weight_files.fit_schedule(*schedules, path)})

    def _step_on_zeros(self, found):
        """Have the optimizer make its state, as at its first step, for the parameters that ``found`` tells of."""
        names = sorted(found)
        without_gradient = []
        for parameter in self.net.parameters():
            start = parameter.name + "_"
            has_state = any(name.startswith(start) for name in names[bisect.bisect(names, start) :][:1])
            if has_state and parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
                without_gradient.append(parameter)
        self.optimizer.step()
        for parameter in without_gradient:
            parameter.clear_gradient(set_to_zero=False)  # a dense zero would make a sparse gradient dense

    def schedule_state(self):
        """None: the optimizer's state has it."""

    def write_data(self, parent):
        """Nothing: ``use_save_data`` is a key of the static tools."""

    def read(self, folder, partly=False):
        """Load the weights of an epoch folder of either graph.

        Raises:
            UserError: they are missing, broken, or another network's.
        """
        weights = weight_files.read_weights(folder)
        same_network.check(self.model, weights, self.config)
        encodings.check(weights.encoding, self.package.encoding, weights.path)
        state = self.net.state_dict()
        if weights.by_structured is not None:
            chosen = weight_files.fit(state, weights.by_structured, weights.path, partly)
        else:
            structured = {tensor.name: key for key, tensor in state.items()}
            by_name = {tensor.name: tensor for tensor in state.values()}
            chosen = {
                structured[name]: value
                for name, value in weight_files.fit(by_name, weights.by_name, weights.path, partly).items()
            }
        self.net.set_state_dict({**state, **chosen})


def _is_to_be_compiled(to_static, place):
    """``runner.to_static``; auto: where it was measured to be faster, in PIR's programs on a CPU."""
    if to_static == "auto":
        return paddle.framework.use_pir_api() and isinstance(place, paddle.CPUPlace)
    return to_static
