"""The dense network in plain Paddle, the baseline: eager, one convolution per expert, ReLU before pooling.

All experts run at every step, each convolution has a bias, and a step includes Adam and a metric for each task. Gates,
towers, and a table's linear layers and embeddings are the package's: what differs is how experts are computed.
PaddleRec's own code, which computes a different function, is timed by ``paddlerec.py``.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

import net
from dselect_k_model import hyper_parameters
from support import ways


def _block(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2D(channels_in, channels_out, 5), nn.BatchNorm2D(channels_out), nn.ReLU(), nn.MaxPool2D(2)
    )


class _ImageExpert(nn.Layer):
    """Parameters are named as in ``net.CNNExpert``, whose convolutions have no biases."""

    def __init__(self, expert_size):
        super().__init__()
        head = net.MLP(720, [50, expert_size], activate_output=True)
        self.layers = nn.Sequential(_block(1, 10), _block(10, 20), nn.Flatten(), *head.layers)

    def forward(self, image):
        return self.layers(image)


class _Mixture(nn.Layer):
    def __init__(self, hyper):
        super().__init__()
        tasks, self.inputs = hyper.task_list, None
        if hyper.is_table:
            self.inputs = net.TableInput(
                hyper.input_dense_size, hyper.input_vocabulary_sizes, hyper.input_embedding_size
            )
        self.experts = nn.LayerList([self._expert(hyper) for _ in range(hyper.expert_num)])
        self.gates = nn.LayerList([net.DSelectKGate(hyper.expert_num, hyper.top_k, hyper.gamma) for _ in tasks])
        self.towers = nn.LayerList(
            [net.MLP(hyper.expert_size, [*task.tower_sizes, task.kind.out_size]) for task in tasks]
        )

    def _expert(self, hyper):
        if self.inputs is None:
            return _ImageExpert(hyper.expert_size)
        return net.MLP(self.inputs.out_size, [*hyper.expert_hidden_sizes, hyper.expert_size], activate_output=True)

    def forward(self, *x):
        x = x[0] if self.inputs is None else self.inputs(*x)
        outputs = paddle.stack([expert(x) for expert in self.experts], axis=1)  # [B, n, H]
        mixtures = [paddle.sum(outputs * paddle.reshape(gate()[0], [1, -1, 1]), axis=1) for gate in self.gates]
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


class PlainPaddle:
    """The baseline, for shared gates; their regulariser is left out.

    Args:
        case: cases.Case.
    """

    def __init__(self, case):
        self.case = case
        hyper = hyper_parameters.HyperParameters.from_config(ways.config(**case.hyper))
        self.net = _Mixture(hyper)
        missing, unexpected = self.net.set_state_dict(case.weights)
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
        """One training step: (loss before it, None: all experts are in use)."""
        self.net.train()
        logits = self.net(*map(paddle.to_tensor, self.case.inputs))
        labels = [paddle.reshape(paddle.to_tensor(label), [-1, 1]) for label in self.case.labels]
        loss = paddle.add_n([_loss_and_metric(*task) for task in zip(logits, labels)])
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss), None


def _loss_and_metric(logits, label):
    """A task's loss, after its metric has been computed: AUC if it is binary, otherwise accuracy."""
    if logits.shape[1] == 1:
        p = F.sigmoid(logits)
        paddle.metric.Auc("ROC").update(preds=paddle.concat([1 - p, p], axis=1), labels=label)
        return F.binary_cross_entropy_with_logits(logits, label)
    metric = paddle.metric.Accuracy()
    metric.update(metric.compute(logits, label))
    return F.cross_entropy(logits, label)
