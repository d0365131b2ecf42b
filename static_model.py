"""The static-graph wrapper that PaddleRec's tools and ours call. No mathematics: see ``net.py``."""

import paddle
import paddle.nn.functional as F

import net


class StaticModel:
    """Config -> feeds, network, optimizer and fetches, in the default main and startup programs.

    Args:
        config: flat config dict.
    Raises:
        ValueError: a ``hyper_parameters`` key is unknown or its value is not allowed.
    """

    config_defaults = net.HyperParameters.defaults()  # for tools that ask: every key of this model
    network_config = staticmethod(net.network_config)  # and those that a save must agree in

    def __init__(self, config):
        self.config = config
        self.hyper = net.HyperParameters.from_config(config)
        self.values_at_end = net.values_at_end(self.hyper)  # for tools that take means over an epoch

    def create_feeds(self, is_infer=False):
        """Variables of a batch, in the reader's order: image float32 [-1, 1, 36, 36], labels int64 [-1]."""
        image = paddle.static.data("image", [-1, 1, net.IMAGE_SIZE, net.IMAGE_SIZE], "float32")
        labels = [paddle.static.data(f"label{t + 1}", [-1], "int64") for t in range(self.hyper.task_num)]
        return [image] + labels

    def net(self, input, is_infer=False):
        """Build the network and its loss, which is kept for ``create_optimizer``.

        ``export_vars`` holds, by plain names, what an exported model may offer.

        Returns:
            {printed name: Variable}.
        """
        image, labels = input[0], input[1:]
        net.check_label_num(len(labels), self.hyper)
        self.network = net.MultiGateMixture(self.hyper)
        self.parameter_labels = self.network.parameter_labels()  # for tools that name a parameter
        if is_infer:
            self.network.eval()  # or batch norm would use, and move, the batch's own statistics
        logits, gate_weights, regularisation = self.network(image, details=True)
        losses = net.losses(logits, labels, self.hyper, None if is_infer else regularisation)
        self.loss = losses["loss"]
        self.export_vars = _offered(logits, gate_weights)
        fetches = {
            name: paddle.mean(net.is_right(z, label))
            for name, z, label in zip(net.accuracy_names(self.hyper), logits, labels)
        }
        return {**fetches, **losses, "experts_used": net.experts_used(gate_weights)}

    def infer_net(self, input):
        """The same, in evaluation mode and without the gates' regularisers."""
        return self.net(input, is_infer=True)

    def export_net(self, feeds, parameters):
        """Build the network for good, for the weights it has: what an exported model may offer.

        Optional in a package; our tools ask for it by ``getattr``, and export ``infer_net`` and
        ``export_vars`` where there is none. As in ``infer_net``, the layers are created as in
        ``net``, so that their parameters have the same names; what is not used leaves the file.

        Args:
            feeds: what ``create_feeds(is_infer=True)`` gave.
            parameters: parameter name -> array, the checkpoint's.
        Returns:
            {plain name: Variable}, logits1 and probabilities1 being those of the first task.
        """
        self.network = net.MultiGateMixture(self.hyper)
        self.network.eval()
        if self.hyper.gate == "dselect_k":
            weights = [gate.weights_at(parameters) for gate in self.network.gates]
            return _offered(self.network.forward_settled(feeds[0], weights), [paddle.assign(w) for w in weights])
        self.network.branch = True  # oneDNN, which Paddle Inference uses, refuses an empty batch
        logits, gate_weights, _ = self.network(feeds[0], details=True)
        return _offered(logits, gate_weights)

    def create_optimizer(self, strategy=None):
        """Minimize the kept loss; the schedule of the learning rate moves on by itself, at each run."""
        rate = net.learning_rate(self.hyper, self.config)
        if isinstance(rate, net.TrainingSchedule):
            rate = _MovedByExecutor(rate)
        optimizer = net.build_optimizer(self.network, self.hyper, rate)
        if strategy is not None:
            import paddle.distributed.fleet as fleet

            optimizer = fleet.distributed_optimizer(optimizer, strategy)
        optimizer.minimize(self.loss)
        if isinstance(rate, _MovedByExecutor):
            rate.built = True
        return optimizer


class _MovedByExecutor(net.TrainingSchedule):
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


def _offered(logits, gate_weights):
    """The outputs that an exported model may have, by plain names."""
    variables = {"logits": logits, "probabilities": [F.softmax(z) for z in logits], "gate_weights": gate_weights}
    offered = {f"{name}{t + 1}": v for name, of_tasks in variables.items() for t, v in enumerate(of_tasks)}
    return {**offered, "experts_used": net.experts_used(gate_weights)}
