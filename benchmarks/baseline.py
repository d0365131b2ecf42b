"""The dense mixture in plain Paddle, the baseline: eager, one convolution per expert, ReLU before pooling.

All experts run at every step, each convolution has a bias, and a step includes Adam and an accuracy for each task.
Gates and towers are the package's, since their cost is negligible. PaddleRec's own code, which computes a different
function, is timed by ``rates.PackageStep``.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn
from worker import Case

import hyper_parameters
import net


def _block(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2D(channels_in, channels_out, 5), nn.BatchNorm2D(channels_out), nn.ReLU(), nn.MaxPool2D(2)
    )


class _Expert(nn.Layer):
    """Parameters are named as in ``net.CNNExpert``, which has no biases in its convolutions."""

    def __init__(self, expert_size):
        super().__init__()
        self.layers = nn.Sequential(
            _block(1, 10),
            _block(10, 20),
            nn.Flatten(),
            nn.Linear(720, 50),
            nn.ReLU(),
            nn.Linear(50, expert_size),
            nn.ReLU(),
        )

    def forward(self, image):
        return self.layers(image)


class _Mixture(nn.Layer):
    def __init__(self, hyper):
        super().__init__()
        tasks, sizes = range(hyper.task_num), [hyper.tower_size, hyper.tower_size, hyper.class_num]
        self.experts = nn.LayerList([_Expert(hyper.expert_size) for _ in range(hyper.expert_num)])
        self.gates = nn.LayerList([net.DSelectKGate(hyper.expert_num, hyper.top_k, hyper.gamma) for _ in tasks])
        self.towers = nn.LayerList([net.MLP(hyper.expert_size, sizes) for _ in tasks])

    def forward(self, image):
        outputs = paddle.stack([expert(image) for expert in self.experts], axis=1)  # [B, n, H]
        mixtures = [paddle.sum(outputs * paddle.reshape(gate()[0], [1, -1, 1]), axis=1) for gate in self.gates]
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


class Baseline:
    """The baseline with a case's weights, for static gates; their regulariser is left out.

    Args:
        path: of the case.
    """

    def __init__(self, path):
        self.case = Case(path)
        keys = {key.replace("__", "_"): value for key, value in self.case.hyper.items()}
        hyper = hyper_parameters.HyperParameters(**keys)
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
        return [z.numpy() for z in self.net(paddle.to_tensor(self.case.batch[0]))]

    def step(self):
        """One training step: (loss before it, None for the experts in use: all are)."""
        self.net.train()
        image, *labels = [paddle.to_tensor(item) for item in self.case.batch]
        labels = [paddle.reshape(label, [-1, 1]) for label in labels]
        logits = self.net(image)
        loss = paddle.add_n([F.cross_entropy(z, label) for z, label in zip(logits, labels)])
        for z, label in zip(logits, labels):
            metric = paddle.metric.Accuracy()
            metric.update(metric.compute(z, label))
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        return float(loss), None
