import paddle
import paddle.nn.functional as F

import net


class DygraphModel:
    def create_model(self, config):
        return net.OrderLayer()

    def create_optimizer(self, dy_model, config):
        return paddle.optimizer.SGD(config["hyper_parameters.learning_rate"], parameters=dy_model.parameters())

    def create_metrics(self):
        return [paddle.metric.Accuracy()], ["acc"]

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        x, label = batch_data
        logits = dy_model(x)
        metrics_list[0].update(metrics_list[0].compute(logits, label))
        return F.cross_entropy(logits, label), metrics_list, None

    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        x, label = batch_data
        metrics_list[0].update(metrics_list[0].compute(dy_model(x), label))
        return metrics_list, None
