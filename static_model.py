"""The static-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py`` and ``tasks.py``."""

import paddle

import hyper_parameters
import net
import tasks
import training


class StaticModel:
    """Config -> feeds, network, optimizer and fetches, in the default main and startup programs.

    Args:
        config: flat config dict.
    Raises:
        ValueError: a ``hyper_parameters`` key is unknown or its value is not allowed.
    """

    config_defaults = hyper_parameters.HyperParameters.defaults()  # for tools that ask: every key of this model
    network_config = staticmethod(hyper_parameters.network_config)  # and those that a save must agree in

    def __init__(self, config):
        self.config = config
        self.hyper = hyper_parameters.HyperParameters.from_config(config)
        self.tasks = self.hyper.task_list()
        self.eager_gates = None  # of _constant_weights

    def create_feeds(self, is_infer=False):
        """Variables of a batch, in the reader's order: the inputs, then each task's label [-1]."""
        inputs = [paddle.static.data(name, [-1, *shape], dtype) for name, shape, dtype in self.hyper.inputs()]
        return inputs + [paddle.static.data(f"label{t.suffix}", [-1], t.kind.label_dtype) for t in self.tasks]

    def check_batch(self, batch):
        """Raise ValueError if a batch has an id or a class that there is not. For tools that ask."""
        self.hyper.check_batch(batch)

    def net(self, input, is_infer=False):
        """Build the network and its loss, which is kept for ``create_optimizer``.

        ``export_vars`` holds, by plain names, what an exported model may offer, ``observed`` what
        ``update_metrics`` reads.

        Returns:
            {printed name: Variable}.
        """
        inputs, labels = self.hyper.split(input)
        self._build_network()
        if is_infer:
            self.network.eval()  # or batch norm would use, and move, the batch's own statistics
        outputs, gate_weights, penalty = self.network(*inputs, details=True)
        if is_infer:
            losses = tasks.losses(self.tasks, outputs, labels)
        else:
            losses = tasks.losses(self.tasks, outputs, labels, penalty, self.network.log_variances)
        self.loss = losses["loss"]
        self.export_vars = self._offered(outputs, gate_weights)
        self.is_infer = is_infer
        self.observed = [*outputs]
        if not is_infer:
            self.observed.append(tasks.beside_the_tasks(self.tasks, losses))
        if self.network.per_example:
            self.observed += [paddle.mean(w, axis=0) for w in gate_weights]
        accuracies = tasks.batch_accuracies(self.tasks, outputs, labels)
        return {**accuracies, **losses, "experts_used": net.experts_used(gate_weights)}

    def infer_net(self, input):
        """The same, in evaluation mode and without the gates' regularisers."""
        return self.net(input, is_infer=True)

    def create_metrics(self):
        """The tasks' metrics, over all labelled examples, for tools that keep them: (metrics, names)."""
        self.mean_weights = tasks.MeanWeights()
        return tasks.create_metrics(self.tasks)

    def update_metrics(self, metrics_list, observed, batch_data):
        """Count a batch: what ``observed`` was in it, as arrays, and the batch in the reader's order."""
        labels = self.hyper.split(batch_data)[1]
        outputs, others = observed[: len(self.tasks)], observed[len(self.tasks) :]
        rest, means = (0.0, others) if self.is_infer else (others[0], others[1:])
        tasks.update_metrics(self.tasks, metrics_list, outputs, labels, rest)
        if means:
            self.mean_weights.count(means, len(outputs[0]), training=not self.is_infer)

    def status(self, parameters):
        """The experts that each task uses, for tools that tell: title -> expert's number -> weight.

        Args:
            parameters: parameter name -> array.
        """
        if self.network.per_example:
            return self.mean_weights.of_tasks(self.tasks)
        return tasks.experts_of_tasks(self.tasks, self._constant_weights(parameters))

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
        if not self.network.per_example:
            weights = self._constant_weights(parameters)
            outputs = self.network.forward_settled(weights, *inputs)
            return self._offered(outputs, [paddle.assign(w) for w in weights])
        self.network.branch = True  # oneDNN, which Paddle Inference uses, refuses an empty batch
        outputs, gate_weights, _ = self.network(*inputs, details=True)
        return self._offered(outputs, gate_weights)

    def export_tasks(self):
        """What an exported model says of its tasks: a list of dicts.

        suffix: what ends the names of the task's numbers; kind: classes, binary or regression;
        outputs: logits, probabilities or value -> name among the outputs; label: name of its feed.
        """
        return [
            {
                "suffix": task.suffix,
                "kind": type(task.kind).__name__.lower(),
                "outputs": {name: f"{name}{task.suffix}" for name in task.kind.exports},
                "label": f"label{task.suffix}",
            }
            for task in self.tasks
        ]

    def create_optimizer(self, strategy=None):
        """Minimize the kept loss; the schedule of the learning rate moves on by itself, at each run."""
        rate = training.learning_rate(self.hyper, self.config)
        if isinstance(rate, training.TrainingSchedule):
            rate = _SteppedByExecutor(rate)
        optimizer = training.build_optimizer(self.network, self.hyper, rate)
        if strategy is not None:
            import paddle.distributed.fleet as fleet

            optimizer = fleet.distributed_optimizer(optimizer, strategy)
        optimizer.minimize(self.loss)
        if isinstance(rate, _SteppedByExecutor):
            rate.built = True
        return optimizer

    def _build_network(self):
        self.network = hyper_parameters.build(self.hyper)
        self.parameter_labels = self.network.parameter_labels()  # for tools that name a parameter
        self.values_at_end = hyper_parameters.values_at_end(self.network)  # for tools that take means over an epoch

    def _offered(self, outputs, gate_weights):
        """The outputs that an exported model may have, by plain names."""
        offered = {"experts_used": net.experts_used(gate_weights)}
        for task, output, weights in zip(self.tasks, outputs, gate_weights):
            offered.update(task.named({**task.kind.export(output), "gate_weights": weights}))
        return offered

    def _constant_weights(self, parameters):
        """Weights of gates that are the same for every example, by task: NumPy arrays [n].

        Computed by the same network in the dynamic graph, whose parameters have the program's names.
        """
        paddle.disable_static()
        try:
            if self.eager_gates is None:
                with paddle.utils.unique_name.guard():  # so that the program's own names are not used up
                    self.eager_gates = hyper_parameters.build(self.hyper).gates
            for parameter in self.eager_gates.parameters():
                parameter.set_value(parameters[parameter.name])
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
