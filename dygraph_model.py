"""The dynamic-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py`` and ``tasks.py``."""

import paddle

import hyper_parameters
import net
import tasks
import training


class DygraphModel:
    """Config -> network, optimizer, metrics, and one forward pass each for training and inference."""

    config_defaults = hyper_parameters.HyperParameters.defaults()  # for tools that ask: every key of this model
    network_config = staticmethod(hyper_parameters.network_config)  # and those that a save must agree in

    def create_model(self, config):
        """Build the network.

        Args:
            config: flat config dict.
        Returns:
            net.MultiTaskNetwork.
        Raises:
            ValueError: a ``hyper_parameters`` key is unknown or its value is not allowed.
        """
        self.hyper = hyper_parameters.HyperParameters.from_config(config)
        self.tasks = self.hyper.task_list()
        network = hyper_parameters.build(self.hyper)
        self.parameter_labels = network.parameter_labels()  # for tools that name a parameter
        self.values_at_end = hyper_parameters.values_at_end(network)  # for tools that take means over an epoch
        self.log_variances, self.per_example = network.log_variances, network.per_example
        return network

    def create_feeds(self, batch_data, config):
        """Split a batch in the reader's order into (inputs, labels), checked."""
        self.hyper.check_batch(batch_data)
        return self.hyper.split(batch_data)

    def create_optimizer(self, dy_model, config):
        """Build the optimizer over ``dy_model``'s parameters; its schedule is moved on by ``train_forward``."""
        rate = training.learning_rate(self.hyper, config)
        self.schedule = rate if isinstance(rate, training.TrainingSchedule) else None
        parameters = [p for p in dy_model.parameters() if not p.stop_gradient]
        sparse = dy_model.inputs.embedding.weight if self.hyper.sparse_gradients else None
        for parameter in (p for p in parameters if p is not sparse):
            # An expert that has not run yet would have no gradient at all, and Adam would leave
            # its moments alone where a static program, or a dense one, lets them decay.
            parameter.grad = paddle.zeros_like(parameter)
        return training.build_optimizer(dy_model, self.hyper, rate, parameters)

    def create_metrics(self):
        """The tasks' metrics, over all labelled examples since the last reset. Call ``create_model`` first.

        Returns:
            (metrics, names).
        """
        self.mean_weights = tasks.MeanWeights()
        return tasks.create_metrics(self.tasks)

    def status(self, dy_model):
        """The experts that each task uses, for tools that tell: title -> expert's number -> weight."""
        if self.per_example:
            return self.mean_weights.of_tasks(self.tasks)
        return tasks.experts_of_tasks(self.tasks, net.constant_weights(dy_model.gates))

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        """One training step's forward pass.

        Returns:
            (loss, metrics_list, {printed name: Tensor}).
        """
        if self.schedule is not None:
            self.schedule.step()
        printed = self._forward(dy_model, metrics_list, batch_data, config, training=True)
        return printed["loss"], metrics_list, printed

    @paddle.no_grad()
    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        """One evaluation step.

        Returns:
            (metrics_list, {printed name: Tensor}).
        """
        return metrics_list, self._forward(dy_model, metrics_list, batch_data, config, training=False)

    def _forward(self, dy_model, metrics_list, batch_data, config, training):
        inputs, labels = self.create_feeds(batch_data, config)
        outputs, gate_weights, penalty = dy_model(*inputs, details=True)
        if self.per_example:
            means = [w.numpy().mean(axis=0) for w in gate_weights]
            self.mean_weights.count(means, len(labels[0]), training)
        if training:
            losses = tasks.losses(self.tasks, outputs, labels, penalty, self.log_variances)
            rest = float(tasks.beside_the_tasks(self.tasks, losses))
        else:
            losses, rest = tasks.losses(self.tasks, outputs, labels), 0.0
        tasks.update_metrics(self.tasks, metrics_list, outputs, labels, rest)
        return {**losses, "experts_used": net.experts_used(gate_weights)}
