import paddle
import paddle.nn.functional as F

import net


class DygraphModel:
    def create_model(self, config):
        return net.ClickLayer(config.get("hyper_parameters.id_num"), config.get("hyper_parameters.width"))

    def create_feeds(self, batch_data):
        return batch_data[0], batch_data[1], batch_data[2]

    def create_loss(self, pred, label):
        return paddle.mean(F.log_loss(pred, paddle.cast(label, "float32")))

    def create_optimizer(self, dy_model, config):
        rate = config.get("hyper_parameters.optimizer.learning_rate", 0.001)
        return paddle.optimizer.Adam(learning_rate=rate, parameters=dy_model.parameters(), lazy_mode=True)

    def create_metrics(self):
        return [paddle.metric.Auc("ROC")], ["auc"]

    def _update(self, metrics_list, pred, label):
        both = paddle.concat([1 - pred, pred], axis=-1)
        metrics_list[0].update(preds=both.numpy(), labels=label.numpy())

    def train_forward(self, dy_model, metrics_list, batch_data, config):
        label, ids, dense = self.create_feeds(batch_data)
        pred = dy_model.forward(ids, dense)
        loss = self.create_loss(pred, label)
        self._update(metrics_list, pred, label)
        return loss, metrics_list, {"loss": loss}

    def infer_forward(self, dy_model, metrics_list, batch_data, config):
        label, ids, dense = self.create_feeds(batch_data)
        self._update(metrics_list, dy_model.forward(ids, dense), label)
        return metrics_list, None
