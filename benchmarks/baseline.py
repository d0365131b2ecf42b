"""The dense mixture in plain Paddle, the baseline: eager, one convolution per expert, ReLU before pooling.

All experts run at every step, each convolution has a bias, and a step includes Adam and a metric for each task. Gates,
towers and a table's embeddings are the package's, since their cost is negligible. PaddleRec's own code, which computes
a different function, is timed by ``rates.PackageStep``.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn
from ways import config
from worker import Case

import hyper_parameters
import net


def _block(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2D(channels_in, channels_out, 5), nn.BatchNorm2D(channels_out), nn.ReLU(), nn.MaxPool2D(2)
    )


class _Expert(nn.Layer):
    """Parameters are named as in ``net.CNNExpert``, which has no biases in its convolutions, or as in ``net.MLP``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def _expert(hyper, inputs):
    """On an image, or if there are ``inputs``, a table's, on those."""
    blocks, sizes = [_block(1, 10), _block(10, 20), nn.Flatten()], [720, 50, hyper.expert_size]
    if inputs is not None:
        blocks, sizes = [], [inputs.out_size, *hyper.expert_hidden_sizes, hyper.expert_size]
    linear = [layer for wide in zip(sizes, sizes[1:]) for layer in (nn.Linear(*wide), nn.ReLU())]
    return _Expert(*blocks, *linear)


class _Mixture(nn.Layer):
    def __init__(self, hyper):
        super().__init__()
        tasks = hyper.task_list()
        self.inputs = None
        if hyper.is_table:
            self.inputs = net.TableInput(
                hyper.input_dense_size, hyper.input_vocabulary_sizes, hyper.input_embedding_size
            )
        self.experts = nn.LayerList([_expert(hyper, self.inputs) for _ in range(hyper.expert_num)])
        self.gates = nn.LayerList([net.DSelectKGate(hyper.expert_num, hyper.top_k, hyper.gamma) for _ in tasks])
        self.towers = nn.LayerList(
            [net.MLP(hyper.expert_size, [*task.tower_sizes, task.kind.out_size]) for task in tasks]
        )

    def forward(self, *x):
        x = x[0] if self.inputs is None else self.inputs(*x)
        outputs = paddle.stack([expert(x) for expert in self.experts], axis=1)  # [B, n, H]
        mixtures = [paddle.sum(outputs * paddle.reshape(gate()[0], [1, -1, 1]), axis=1) for gate in self.gates]
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


class Baseline:
    """The baseline with a case's weights, for static gates; their regulariser is left out.

    Args:
        path: of the case.
    """

    def __init__(self, path):
        self.case = Case(path)
        hyper = hyper_parameters.HyperParameters.from_config(config(**self.case.hyper))
        self.net = _Mixture(hyper)
        missing, unexpected = self.net.set_state_dict(self.case.weights)
        assert all(key.endswith(".0.bias") for key in missing) and unexpected == ["step"], (missing, unexpected)
        for key in missing:  # the convolutions' biases
            self.net.state_dict()[key].set_value(paddle.zeros_like(self.net.state_dict()[key]))
        self.optimizer = paddle.optimizer.Adam(hyper.optimizer_learning_rate, parameters=self.net.parameters())

    @paddle.no_grad()
    def predict(self):
        """Logits of each task."""
        self.net.eval()
        return [z.numpy() for z in self.net(*map(paddle.to_tensor, self.case.inputs))]

    def step(self):
        """One training step: (loss before it, None for the experts in use: all are)."""
        self.net.train()
        logits = self.net(*map(paddle.to_tensor, self.case.inputs))
        labels = [paddle.reshape(paddle.to_tensor(label), [-1, 1]) for label in self.case.labels]
        loss = paddle.add_n([_loss(*task) for task in zip(logits, labels)])
        for task in zip(logits, labels):
            _update_metric(*task)
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss), None


def _is_binary(logits):
    return logits.shape[1] == 1


def _loss(logits, label):
    if _is_binary(logits):
        return F.binary_cross_entropy_with_logits(logits, label)
    return F.cross_entropy(logits, label)


def _update_metric(logits, label):
    """A step's accuracy, or for a binary task its AUC."""
    if _is_binary(logits):
        p = F.sigmoid(logits)
        paddle.metric.Auc("ROC").update(preds=paddle.concat([1 - p, p], axis=1), labels=label)
        return
    metric = paddle.metric.Accuracy()
    metric.update(metric.compute(logits, label))
