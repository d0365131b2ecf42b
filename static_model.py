"""The static-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py``."""

from typing import Any, NamedTuple

import paddle
from paddle import nn

import net
from dselect_k_model import build, gate_status, hyper_parameters, tasks, training
from dselect_k_model.epoch_metrics import EpochMetrics
from dselect_k_model.gates import make_gate


class Built(NamedTuple):
    """What ``StaticModel.build`` has built: three dicts name -> Variable."""

    fetches: dict[str, Any]  # printed after a step
    observed: dict[str, Any]  # read by ``update_metrics``
    outputs: dict[str, Any]  # offered by an exported model; none in a training


class StaticModel:
    """Config -> feeds, network, optimizer and fetches, in the default main and startup programs.

    Args:
        config: flat config dict.
    Raises:
        ValueError: a ``hyper_parameters`` key is unknown or its value is not allowed.
    """

    # Optional hooks of the tools: every key with its default, and those that a checkpoint must agree in
    config_defaults = hyper_parameters.HyperParameters.defaults()
    network_config = staticmethod(hyper_parameters.network_config)

    def __init__(self, config):
        self.config = config
        self.hyper = hyper_parameters.HyperParameters.from_config(config)
        self.tasks = self.hyper.task_list
        self.eager_gates = None  # of _constant_weights

    def create_feeds(self, is_infer=False):
        """Variables of a batch, in the reader's order: the inputs, each task's label [-1] or [-1, label_size], then
        ``weight`` and ``group`` if there are any.
        """
        feeds = [*self.hyper.inputs(), *self.hyper.labels(), *self.hyper.about()]
        return [paddle.static.data(name, [-1, *shape], dtype) for name, shape, dtype in feeds]

    def check_batch(self, batch):
        """Raise ValueError if a batch has an id, a label or a weight out of range."""
        self.hyper.check_batch(batch)

    def build(self, feeds, is_infer=False):
        """Build the network and its loss, which is kept for ``create_optimizer``.

        Args:
            feeds: what ``create_feeds`` gave.
            is_infer: build it for evaluation, without the gates' regularisers.
        Returns:
            Built.
        """
        (inputs, labels), about = self.hyper.split(feeds), self.hyper.split_about(feeds)
        self._build_network()
        if is_infer:
            self.network.eval()  # or batch norm would use, and move, the batch's own statistics
        outputs, gate_weights, penalty = self.network(inputs, details=True)
        if not is_infer:
            outputs = tasks.for_training(self.tasks, outputs)
        over_job = not is_infer or self.facts.shards is not None  # else each process has batches of its own
        masked = tasks.mask_missing(self.tasks, labels, outputs[0].dtype, over_job, about.get("weight"))
        if is_infer:
            losses = tasks.losses(self.tasks, outputs, masked)
        else:
            losses = tasks.losses(self.tasks, outputs, masked, penalty, self.network.log_variances)
        self.loss = losses.minimized
        if not is_infer:
            self.facts.find_experts_in_use(gate_weights)
        observed = dict(zip(self.observed_outputs(), outputs))
        observed.update((f"losses{task.suffix}", value) for task, value in zip(self.tasks, losses.by_label))
        if not is_infer:
            observed["penalty"] = losses.penalty
        if self.facts.per_example:
            for t, weights in enumerate(gate_weights):
                observed[f"mean_weights.{t}"] = paddle.mean(weights, axis=0)
        fetches = tasks.batch_metrics(self.tasks, outputs, masked)
        experts_used = net.experts_used(gate_weights)
        fetches.update(losses.named, experts_used=experts_used)
        return Built(fetches, observed, self._offered(outputs, gate_weights, experts_used) if is_infer else {})

    def net(self, input, is_infer=False):
        """``build`` as PaddleRec's tools ask for it: {printed name: Variable}."""
        return self.build(input, is_infer).fetches

    def infer_net(self, input):
        """The same for evaluation."""
        return self.net(input, is_infer=True)

    def create_metrics(self):
        """The tasks' metrics, over all labelled examples: (metrics, names)."""
        self.epoch_metrics, self.mean_weights = EpochMetrics(self.tasks), gate_status.MeanWeights()
        named = self.epoch_metrics.named()
        return list(named.values()), list(named)

    def update_metrics(self, metrics_list, observed, batch_data):
        """Count a batch.

        Args:
            metrics_list: as ``create_metrics`` gave them.
            observed: name -> array, of ``Built.observed`` or, where an exported model runs, of ``observed_outputs``.
            batch_data: the batch in the reader's order.
        """
        outputs = [observed[name] for name in self.observed_outputs()]
        losses = [observed[f"losses{task.suffix}"] for task in self.tasks if f"losses{task.suffix}" in observed]
        labels, about = self.hyper.split(batch_data)[1], self.hyper.split_about(batch_data)
        self.epoch_metrics.update(outputs, labels, losses or None, observed.get("penalty", 0.0), about)
        means = [observed[name] for name in observed if name.startswith("mean_weights.")]
        if means:
            self.mean_weights.count(means, len(outputs[0]), training="penalty" in observed)

    def observed_outputs(self):
        """Names of the outputs of an exported model that ``update_metrics`` reads."""
        return [f"{task.kind.exports[0]}{task.suffix}" for task in self.tasks]

    def network_facts(self):
        """What the tools may know of the network, once it is built: see ``build.NetworkFacts``."""
        return self.facts

    def status(self, parameters):
        """The experts that each task uses, for the log: title -> expert's number -> weight.

        Args:
            parameters: parameter name -> array.
        """
        if self.facts.per_example:
            return self.mean_weights.of_tasks(self.tasks)
        return gate_status.experts_of_tasks(self.tasks, self._constant_weights(parameters))

    def export_net(self, feeds, parameters):
        """Build the network for good, for the weights it has: what an exported model may offer.

        As in ``infer_net``, the layers are created as in ``net``, so that their parameters have the
        same names; what is not used leaves the file.

        Args:
            feeds: what ``create_feeds(is_infer=True)`` gave.
            parameters: parameter name -> array, the checkpoint's.
        Returns:
            {plain name: Variable}, logits1 and probabilities1 being those of the first task.
        """
        inputs, _ = self.hyper.split(feeds)
        self._build_network()
        self.network.eval()
        if not self.facts.per_example:
            weights = self._constant_weights(parameters)
            outputs = self.network.forward_settled(weights, inputs)
            weights = [paddle.assign(w) for w in weights]
            return self._offered(outputs, weights, net.experts_used(weights))
        self.network.branch = True  # oneDNN, which Paddle Inference uses, refuses an empty batch
        outputs, gate_weights, _ = self.network(inputs, details=True)
        return self._offered(outputs, gate_weights, net.experts_used(gate_weights))

    def export_tasks(self):
        """What an exported model's signature says of its tasks: a list of dicts."""
        return [
            {
                "suffix": task.suffix,
                "outputs": {name: f"{name}{task.suffix}" for name in task.kind.exports},
                "label": f"label{task.suffix}",
                "label_columns": task.kind.label_names(task.suffix),
                **({"classes": list(task.kind.class_names)} if task.kind.class_names else {}),
                "columns": [dict(column) for column in task.kind.columns],
                "metric": list(task.kind.prediction_metric),
                "negative_is_missing": task.kind.negative_is_missing,
            }
            for task in self.tasks
        ]

    def create_optimizer(self, strategy=None):
        """Minimize the kept loss; the schedule of the learning rate moves on by itself, at each run."""
        rate = training.learning_rate(self.hyper, self.config)
        if isinstance(rate, training.TrainingSchedule):
            rate = _SteppedByExecutor(rate)
        optimizer = training.build_optimizer(self.network, self.hyper, rate, shards=self.facts.shards)
        if strategy is not None:
            import paddle.distributed.fleet as fleet

            optimizer = fleet.distributed_optimizer(optimizer, strategy)
        optimizer.minimize(self.loss)
        self.facts.finite_parameters = getattr(optimizer, "finite_parameters", None)
        if isinstance(rate, _SteppedByExecutor):
            rate.built = True
        return optimizer

    def _build_network(self):
        self.network = build.build(self.hyper)
        self.facts = build.NetworkFacts(self.network)

    def _offered(self, outputs, gate_weights, experts_used):
        """The outputs that an exported model may have, by plain names."""
        offered = {"experts_used": experts_used}
        for task, output, weights in zip(self.tasks, outputs, gate_weights):
            offered.update(task.named({**task.kind.export(output), "gate_weights": weights}))
        return offered

    def _constant_weights(self, parameters):
        """Weights of shared gates, by task: NumPy arrays [n]. Computed by the same gates in the dynamic graph.

        Args:
            parameters: of the program, by name.
        """
        paddle.disable_static()
        try:
            if self.eager_gates is None:
                with paddle.utils.unique_name.guard():  # so that the program's own names are not used up
                    # a shared gate reads no features, so their number does not matter
                    self.eager_gates = nn.LayerList([make_gate(self.hyper, t, 1) for t in range(len(self.tasks))])
            for mine, built in zip(self.eager_gates, self.network.gates):
                for parameter, of_program in zip(mine.parameters(), built.parameters()):
                    parameter.set_value(parameters[of_program.name])
            return net.constant_weights(self.eager_gates)
        finally:
            paddle.enable_static()


class _SteppedByExecutor(training.TrainingSchedule):
    """Moves on each time it is asked for the rate, which Paddle's executor does once a run, before it.

    So a static program follows its schedule under tools that never call ``step()``. While the
    program is built it is asked as well, and stays where it is.
    """

    def __init__(self, schedule):
        self.built = False
        super().__init__(schedule.schedule, schedule.total_steps)

    def __call__(self):
        if self.built:
            self.step()
        return super().__call__()
