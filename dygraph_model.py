"""The dynamic-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py``."""

import paddle

import net
from dselect_k_model import build, gate_status, hyper_parameters, tasks, training
from dselect_k_model.epoch_metrics import EpochMetrics


class DygraphModel:
    """Config -> network, optimizer, metrics, and one forward pass each for training and inference."""

    # Optional hooks of the tools: every key with its default, and those that a checkpoint must agree in
    config_defaults = hyper_parameters.HyperParameters.defaults()
    network_config = staticmethod(hyper_parameters.network_config)

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
        self.tasks = self.hyper.task_list
        network = build.build(self.hyper)
        self.facts = build.NetworkFacts(network)
        self.log_variances = network.log_variances
        return network

    def create_feeds(self, batch_data, config):
        """Split a batch in the reader's order into (inputs, labels), checked."""
        self.hyper.check_batch(batch_data)
        return self.hyper.split(batch_data)

    def create_optimizer(self, dy_model, config):
        """Build the optimizer over ``dy_model``'s parameters; ``train_forward`` moves its schedule on."""
        rate = training.learning_rate(self.hyper, config)
        self.schedule = rate if isinstance(rate, training.TrainingSchedule) else None
        parameters = [p for p in dy_model.parameters() if not p.stop_gradient]
        sparse = dy_model.inputs.embedding.weight if self.hyper.sparse_gradients else None
        for parameter in (p for p in parameters if p is not sparse):
            # An expert that has not run yet would have no gradient at all, and Adam would leave
            # its moments alone where a static program, or a dense one, lets them decay.
            parameter.grad = paddle.zeros_like(parameter)
        return training.build_optimizer(dy_model, self.hyper, rate, parameters, self.facts.shards)

    def create_metrics(self):
        """The tasks' metrics, over all labelled examples since the last reset. Call ``create_model`` first.

        Returns:
            (metrics, names).
        """
        self.epoch_metrics, self.mean_weights = EpochMetrics(self.tasks), gate_status.MeanWeights()
        named = self.epoch_metrics.named()
        return list(named.values()), list(named)

    def network_facts(self, dy_model):
        """What the tools may know of the network: see ``build.NetworkFacts``."""
        return self.facts

    def status(self, dy_model):
        """The experts that each task uses, for the log: title -> expert's number -> weight."""
        if self.facts.per_example:
            return self.mean_weights.of_tasks(self.tasks)
        return gate_status.experts_of_tasks(self.tasks, net.constant_weights(dy_model.gates))

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        """One training step's forward pass.

        Returns:
            (loss, metrics_list, {printed name: Tensor}).
        """
        if self.schedule is not None:
            self.schedule.step()
        losses, printed = self._forward(dy_model, metrics_list, batch_data, config, training=True)
        return losses.minimized, metrics_list, printed

    @paddle.no_grad()
    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        """One evaluation step.

        Returns:
            (metrics_list, {printed name: Tensor}).
        """
        return metrics_list, self._forward(dy_model, metrics_list, batch_data, config, training=False)[1]

    def _forward(self, dy_model, metrics_list, batch_data, config, training):
        inputs, labels = self.create_feeds(batch_data, config)
        about = self.hyper.split_about(batch_data)
        outputs, gate_weights, penalty = dy_model(inputs, details=True)
        if training:
            outputs = tasks.for_training(self.tasks, outputs)
            self.facts.find_experts_in_use(gate_weights)
        if self.facts.per_example:
            means = [w.numpy().mean(axis=0) for w in gate_weights]
            self.mean_weights.count(means, len(labels[0]), training)
        over_job = training or self.facts.shards is not None  # else each process has batches of its own
        masked = tasks.mask_missing(self.tasks, labels, outputs[0].dtype, over_job, about.get("weight"))
        if training:
            losses = tasks.losses(self.tasks, outputs, masked, penalty, self.log_variances)
        else:
            losses = tasks.losses(self.tasks, outputs, masked)
        penalty = float(losses.penalty) if training else 0.0
        self.epoch_metrics.update(outputs, labels, losses.by_label, penalty, about)
        return losses, {**losses.named, "experts_used": net.experts_used(gate_weights)}
