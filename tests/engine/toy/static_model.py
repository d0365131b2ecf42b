"""The toy of dygraph_model.py on the static graph."""

import paddle


class StaticModel:
    higher_is_better = {"error_type": True}

    def __init__(self, config):
        exports = "runner.job" not in config or config.get("runner.use_inference")
        self.counts = not exports  # Paddle could not write that

    def create_feeds(self, is_infer=False):
        return [paddle.static.data("x", [-1, 1], "float32")]

    def net(self, feeds, is_infer=False):
        zero = paddle.nn.initializer.Constant(0.0)
        weight = paddle.create_parameter([1, 1], "float32", name="toy", default_initializer=zero)
        seen = paddle.create_parameter([1], "float32", name="seen", default_initializer=zero)
        seen.stop_gradient = True
        before = seen + 0
        if self.counts:
            paddle.increment(seen)
        self.loss = paddle.mean(weight)
        printed = {"loss": self.loss, "first": feeds[0][0], "sum": feeds[0] + weight}
        if is_infer:
            error = paddle.mean((weight - feeds[0]) ** 2)
            return {**printed, "error": error, "error_type": -error}
        return {**printed, "seen": before, "by_paddle": paddle.rand([1]), "error": self.loss * 0}

    def infer_net(self, feeds):
        return self.net(feeds, is_infer=True)

    def create_optimizer(self, strategy=None):
        paddle.optimizer.SGD(paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)).minimize(self.loss)
