"""The dynamic graph: a package's ``DygraphModel``, trained and evaluated eagerly."""

import bisect
import copy
import logging
import os

import numpy as np
import paddle

from engine.checkpoints import compatibility, manifests, weight_files
from engine.errors import NotFinite, user_errors
from engine.graphs import finite, metric_state
from engine.graphs.averaging import EagerAverage, check_programs
from engine.graphs.graph import Graph, Step
from engine.interface import offered
from engine.spread import Copy

LOG = logging.getLogger("engine")


class DynamicGraph(Graph):
    """A package's ``DygraphModel``. For the arguments and methods see ``Graph``."""

    name, module, wrapper = "dynamic", "dygraph_model", "DygraphModel"

    def __init__(self, package, config, settings, job, place):
        super().__init__(package, config, settings, job, place)
        self.model = self.find_wrapper(package)()
        with user_errors(config["yaml_path"]):
            self.net = self.model.create_model(config)
        if _is_to_be_compiled(settings, place, self.facts(), job == "train", self.shards.exist):
            LOG.info("the network is compiled into a program (runner.to_static)")
            self.net = paddle.jit.to_static(self.net, full_graph=True)
        if job == "train":
            if settings.model_init_path is not None:
                self.read(settings.model_init_path, partly=True)
            with user_errors(config["yaml_path"]):
                self.optimizer = self.model.create_optimizer(self.net, config)
            labels = self.parameter_labels()
            self.trained = [(labels.get(p.name, name), p) for name, p in self.net.named_parameters()]
            self.average = None
            if self.processes.number > 1:
                self.average = EagerAverage(self.processes, self.net, self.facts())

    def for_evaluation(self, config, settings):
        with paddle.utils.unique_name.guard():
            return DynamicGraph(self.package, config, settings, "infer", self.place)

    def take(self, parameters):
        for name, tensor in self.net.state_dict().items():
            tensor.set_value(parameters[name])

    def facts(self):
        describe = offered(self.model, "network_facts")
        return None if describe is None else describe(self.net)

    def begin_epoch(self, counted=None):
        self.net.train()
        self._new_metrics(counted, manifests.MANIFEST)

    def begin_evaluation(self):
        self.net.eval()
        self._new_metrics()

    def train_step(self, batch):
        """See ``Graph``. Where it raises NotFinite, no parameter has been updated; metrics and statistics have been."""
        self.optimizer.clear_grad()
        with self._counted_once(batch):
            loss, self.metrics_list, tensors = self._forward(self.model.train_forward, batch)
        wrong = None
        try:
            finite.check_scalars({"loss": loss, **(tensors or {})})
        except NotFinite as error:
            if self.average is None:
                raise
            wrong = error  # the others must hear of it, and may wait for this one in the backward pass
        loss.backward()
        if self.average is not None:
            self.average(len(batch[0]), wrong)
        gradients = ((name, parameter.grad) for name, parameter in self.trained if parameter.grad is not None)
        finite.check(gradients, finite.GRADIENT)
        self.optimizer.step()
        self._advance_schedule("batch")
        step = Step(tensors or {}, self.metrics, self.status, self.average.sent_bytes if self.average else 0)
        return step, 0 if isinstance(batch, Copy) else len(batch[0])

    def snapshot(self):
        # The optimizer's moments are not in it: a step that raises NotFinite ends before they change.
        values = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        schedule = self._schedule()
        position = None if schedule is None else copy.deepcopy(schedule.state_dict())
        return values, metric_state.snapshot(self.metrics_list), position

    def restore(self, snapshot):
        values, counted, position = snapshot
        metric_state.restore(self.metrics_list, counted)
        for name, tensor in self.net.state_dict().items():
            tensor.set_value(values[name])
        if position is not None:
            self._schedule().set_state_dict(position)

    def infer_step(self, batch):
        with self._counted_once(batch):
            self.metrics_list, tensors = self._forward(self.model.infer_forward, batch)
        return Step(tensors or {}, self.metrics, self.status), 0 if isinstance(batch, Copy) else len(batch[0])

    def _forward(self, forward, batch):
        batch = [paddle.to_tensor(item) if isinstance(item, np.ndarray) else item for item in batch]
        with self._errors_of_the_package():
            return forward(self.net, self.metrics_list, batch, self.config)

    def _schedule(self):
        rate = self.optimizer._learning_rate  # Paddle has no public name for it
        return rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None

    def status(self):
        return self._describe(self.net)

    def parameters(self):
        return {**self.net.state_dict(), **self.fetched_weights}

    def state_of_all(self):
        shards = self.shards
        return {name: tensor.numpy() for name, tensor in self._tensors().items() if not shards.is_own(name)}

    def set_state(self, state):
        tensors = self._tensors()
        for name, value in state.items():
            tensors[name].set_value(value)

    def _tensors(self):
        return {**self.net.state_dict(), **self._optimizer_state()}

    def _optimizer_state(self):
        return {n: t for n, t in self.optimizer.state_dict().items() if isinstance(t, paddle.Tensor)}

    def write(self, folder):
        names = self.shards.names
        weights = {name: _named(array, names[name]) for name, array in self.fetched_weights.items()}
        of_optimizer = {name: _named(array, name) for name, array in self.fetched_optimizer.items()}
        prefix = os.path.join(folder, weight_files.DYNAMIC)
        paddle.save({**self.net.state_dict(), **weights}, prefix + ".pdparams")
        paddle.save({**self.optimizer.state_dict(), **of_optimizer}, prefix + ".pdopt")

    def resume(self, folder, schedule_state):
        path, found = weight_files.read_optimizer_state(folder, weight_files.DYNAMIC)
        found = self.shards.keep_own(found, path)
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
        return None  # the optimizer's state has it

    def read(self, folder, partly=False):
        weights = weight_files.read_weights(folder)
        compatibility.check(weights, self.model, self.config, self.package.encoding)
        state, shards = self.net.state_dict(), self.shards
        if weights.by_structured is not None:
            chosen = weight_files.fit(state, shards.keep_own(weights.by_structured, weights.path), weights.path, partly)
        else:
            structured = {tensor.name: key for key, tensor in state.items()}
            by_name = {tensor.name: tensor for tensor in state.values()}
            found = weight_files.fit(by_name, shards.keep_own(weights.by_name, weights.path), weights.path, partly)
            chosen = {structured[name]: value for name, value in found.items()}
        self.net.set_state_dict({**state, **chosen})


def _named(array, name):
    """A tensor that ``paddle.save`` will note under the name of a parameter."""
    tensor = paddle.to_tensor(array)
    tensor.name = name
    return tensor


def _is_to_be_compiled(settings, place, facts, trains, is_shared_out):
    """``runner.to_static``; auto: where it was measured to be faster, in PIR's programs on a CPU of many operators."""
    reduces = is_shared_out or (trains and settings.processes.number > 1 and getattr(facts, "reduces_within", False))
    if settings.to_static != "auto":
        if settings.to_static and reduces:
            check_programs()
        return settings.to_static
    if not paddle.framework.use_pir_api() or not isinstance(place, paddle.CPUPlace):
        return False
    # where a reduction within a compiled network fails, Paddle aborts the process instead of raising (3.3.1)
    return not (trains and getattr(facts, "uses_all_cores", False)) and not reduces
