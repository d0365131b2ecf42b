import paddle
import paddle.nn.functional as F

import net


class DygraphModel:
    def create_model(self, config):
        return net.PriceLayer()

    def create_optimizer(self, dy_model, config):
        rate = config["hyper_parameters.learning_rate"]
        schedule = paddle.optimizer.lr.ExponentialDecay(learning_rate=rate, gamma=0.5)
        return paddle.optimizer.SGD(learning_rate=schedule, parameters=dy_model.parameters())

    def create_metrics(self):
        return [], []

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        x, y = batch_data
        guess = dy_model(x)
        loss = F.mse_loss(guess, y)
        return loss, metrics_list, {"loss": loss, "guess": guess}

    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        x, y = batch_data
        return metrics_list, {"loss": F.mse_loss(dy_model(x), y)}
