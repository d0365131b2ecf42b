"""A case: a network's weights, one batch, and what the dense network computes from them.

``reference.py`` writes it; this file needs no Paddle, so that PyTorch's process can read it.
"""

import dataclasses
import pickle

import numpy as np


@dataclasses.dataclass
class Case:
    """A network, a batch and the expected answers.

    Attributes:
        hyper: keys of ``hyper_parameters``, as ``ways.config`` takes them.
        inputs, labels: of the batch: [image] or [numeric, ids]; [label of task 1, ...].
        weights: {structured name: array} of the package's network.
        logits: of each task, by the dense network in evaluation mode.
        losses: of the first two training steps, both on this batch.
        active: sorted indices of the experts with a positive weight.
    """

    hyper: dict
    inputs: list
    labels: list
    weights: dict
    logits: list
    losses: list
    active: list

    @property
    def batch(self):
        """What a reader would return."""
        return [*self.inputs, *self.labels]

    def rows(self, chosen):
        """The case of some of its rows."""
        inputs, labels = ([item[chosen] for item in items] for items in (self.inputs, self.labels))
        return dataclasses.replace(self, inputs=inputs, labels=labels)

    def batches(self, size, epochs, seed):
        """Cases of ``size`` rows, in an order that only the seed decides; what is left of an epoch is dropped."""
        rng = np.random.RandomState(seed)
        for _ in range(epochs):
            order = rng.permutation(len(self.labels[0]))
            for begin in range(0, len(order) - size + 1, size):
                yield self.rows(order[begin : begin + size])


def write(path, case):
    with open(path, "wb") as file:
        pickle.dump(case, file)


def read(path):
    with open(path, "rb") as file:
        return pickle.load(file)


def multiplications(case, used_num, training=True):
    """Multiplications for one example: the experts in use, their mixtures, and the towers.

    The backward pass of a layer multiplies as often again for its weights, and once more for its input, except where
    that is an image, which needs no gradient.
    """
    first, experts, towers = 0, 0, 0
    for name, weight in case.weights.items():
        size = weight.size
        if name.startswith("experts.0.") and weight.ndim == 4:  # a 5 x 5 convolution, of images 36 and then 16 wide
            size *= 32**2 if weight.shape[1] == 1 else 12**2
            first += size if weight.shape[1] == 1 else 0
        if name.startswith("experts.0.") and weight.ndim > 1:
            experts += size
        elif name.startswith("towers.") and weight.ndim > 1:
            towers += size
    mixtures = sum(used_num * case.weights[f"towers.{t}.layers.0.weight"].shape[0] for t in range(len(case.labels)))
    forward = used_num * experts + mixtures + towers
    return 3 * forward - used_num * first if training else forward
