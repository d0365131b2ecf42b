"""The toy of dygraph_model.py on the static graph."""

import paddle


class StaticModel:
    def __init__(self, config):
        pass

    def create_feeds(self, is_infer=False):
        return [paddle.static.data("x", [-1, 1], "float32")]

    def net(self, feeds, is_infer=False):
        zero = paddle.nn.initializer.Constant(0.0)
        weight = paddle.create_parameter([1, 1], "float32", name="toy", default_initializer=zero)
        self.loss = paddle.mean(weight)
        return {"loss": self.loss, "first": feeds[0][0], "sum": feeds[0] + weight}

    def infer_net(self, feeds):
        return self.net(feeds)

    def create_optimizer(self, strategy=None):
        paddle.optimizer.SGD(paddle.optimizer.lr.ExponentialDecay(1.0, 0.5)).minimize(self.loss)
