import paddle
import paddle.nn.functional as F

import net


class StaticModel:
    def __init__(self, config):
        self.rate = config["hyper_parameters.learning_rate"]

    def create_feeds(self, is_infer=False):
        return (
            paddle.static.data("x", [None, 3], "float32"),
            paddle.static.data("y", [None, 1], "float32"),
        )

    def net(self, input, is_infer=False):
        layer = net.PriceLayer()
        if is_infer:
            layer.eval()
        guess = layer(input[0])
        self.cost = F.mse_loss(guess, input[1])
        return {"loss": self.cost, "guess": guess}

    def infer_net(self, input):
        return self.net(input, is_infer=True)

    def create_optimizer(self, strategy=None):
        schedule = paddle.optimizer.lr.ExponentialDecay(learning_rate=self.rate, gamma=0.5)
        paddle.optimizer.SGD(learning_rate=schedule).minimize(self.cost)
