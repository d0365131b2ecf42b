import paddle
import paddle.nn.functional as F

import net


class StaticModel:
    def __init__(self, config):
        self.id_num = config.get("hyper_parameters.id_num")
        self.width = config.get("hyper_parameters.width")
        self.learning_rate = config.get("hyper_parameters.optimizer.learning_rate")

    def create_feeds(self, is_infer=False):
        label = paddle.static.data(name="label", shape=[-1, 1], dtype="int64")
        ids = paddle.static.data(name="ids", shape=[-1, 3], dtype="int64")
        dense = paddle.static.data(name="dense", shape=[-1, 1], dtype="float32")
        return [label, ids, dense]

    def net(self, input, is_infer=False):
        label, ids, dense = input
        pred = net.ClickLayer(self.id_num, self.width).forward(ids, dense)
        both = paddle.concat([1 - pred, pred], axis=-1)
        auc = paddle.static.auc(input=both, label=label, num_thresholds=2**12, slide_steps=20)[0]
        if is_infer:
            return {"auc": auc}
        self._cost = paddle.mean(F.log_loss(pred, paddle.cast(label, "float32")))
        return {"cost": self._cost, "auc": auc}

    def create_optimizer(self, strategy=None):
        optimizer = paddle.optimizer.Adam(learning_rate=self.learning_rate, lazy_mode=True)
        if strategy is not None:
            import paddle.distributed.fleet as fleet

            optimizer = fleet.distributed_optimizer(optimizer, strategy)
        optimizer.minimize(self._cost)

    def infer_net(self, input):
        return self.net(input, is_infer=True)
