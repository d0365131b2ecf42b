"""The dynamic-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py``."""

import paddle

import net


class DygraphModel:
    """Config -> network, optimizer, metrics, and one forward pass each for training and inference."""

    config_defaults = net.HyperParameters.defaults()  # for tools that ask: every key of this model
    network_config = staticmethod(net.network_config)  # and those that a save must agree in

    def create_model(self, config):
        """Build the network.

        Args:
            config: flat config dict.
        Returns:
            net.MultiGateMixture.
        Raises:
            ValueError: a ``hyper_parameters`` key is unknown or its value is not allowed.
        """
        self.hyper = net.HyperParameters.from_config(config)
        self.values_at_end = net.values_at_end(self.hyper)  # for tools that take means over an epoch
        network = net.MultiGateMixture(self.hyper)
        self.parameter_labels = network.parameter_labels()  # for tools that name a parameter
        return network

    def create_feeds(self, batch_data, config):
        """Split a batch [image, label of task 1, ...] into (image, labels)."""
        image, labels = batch_data[0], batch_data[1:]
        net.check_label_num(len(labels), self.hyper)
        return image, labels[: self.hyper.task_num]

    def create_optimizer(self, dy_model, config):
        """Build the optimizer over ``dy_model``'s parameters; its schedule is moved on by ``train_forward``."""
        rate = net.learning_rate(self.hyper, config)
        self.schedule = rate if isinstance(rate, net.TrainingSchedule) else None
        parameters = [p for p in dy_model.parameters() if not p.stop_gradient]
        for parameter in parameters:
            # An expert that has not run yet would have no gradient at all, and Adam would leave
            # its moments alone where a static program, or a dense one, lets them decay.
            parameter.grad = paddle.zeros_like(parameter)
        return net.build_optimizer(dy_model, self.hyper, rate, parameters)

    def create_metrics(self):
        """One accuracy a task, over all examples since the last reset. Call ``create_model`` first."""
        names = net.accuracy_names(self.hyper)
        return [paddle.metric.Accuracy() for _ in names], names

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        """One training step's forward pass.

        Returns:
            (loss, metrics_list, {printed name: Tensor}).
        """
        if self.schedule is not None:
            self.schedule.step()
        image, labels = self.create_feeds(batch_data, config)
        logits, gate_weights, regularisation = dy_model(image, details=True)
        losses = net.losses(logits, labels, self.hyper, regularisation)
        _update(metrics_list, logits, labels)
        return losses["loss"], metrics_list, {**losses, "experts_used": net.experts_used(gate_weights)}

    @paddle.no_grad()
    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        """One evaluation step.

        Returns:
            (metrics_list, {printed name: Tensor}).
        """
        image, labels = self.create_feeds(batch_data, config)
        logits, gate_weights, _ = dy_model(image, details=True)
        _update(metrics_list, logits, labels)
        losses = net.losses(logits, labels, self.hyper)
        return metrics_list, {**losses, "experts_used": net.experts_used(gate_weights)}


def _update(metrics_list, logits, labels):
    for metric, z, label in zip(metrics_list, logits, labels):
        metric.update(net.is_right(z, label))
