"""A recipe of Multi-MNIST in PyTorch: python benchmarks/torch_recipe.py SPEC

SPEC is JSON with the arguments of ``Recipe``. Prints "trained" after the last step, so that a caller can time the
training, and then a line of JSON: the accuracy of each task on the test data, and the experts in use.
"""

import json
import pathlib
import pickle
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tools"))

import cases  # noqa: E402  (the path is set above)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch_model import TorchModel, require_compiler  # noqa: E402

from engine.graphs import process_settings  # noqa: E402

END_RATE = 1e-4  # of the one-cycle schedule, as in dselect_k_model/training.py


def read(folder):
    """The one pickle of a part as a case of images uint8 [N, 36, 36] and labels int64 [N, 2], with nothing else."""
    (path,) = pathlib.Path(folder).glob("*.pickle")
    with open(path, "rb") as file:
        images, labels = pickle.load(file)
    return cases.Case({}, [images], [labels.astype("int64")], {}, [], [], [])


class Recipe:
    """Adam, the one-cycle schedule, a higher rate for the gates, and their entropy term, as config_bigdata.yaml has it.

    Args:
        case: path of a cases.Case, for the initial weights.
        train, test: folders of the data.
        experts, compiled: see torch_model.TorchModel.
        batch: the size of one.
        epochs: passes over the training data.
        rate: the greatest learning rate.
        gate_factor: the gates' learning rate, as a multiple of the others'.
        entropy_weight: of the gates' entropy term.
        seed: of the order.
    """

    def __init__(self, case, train, test, experts, compiled, batch, epochs, rate, gate_factor, entropy_weight, seed):
        self.net = TorchModel(cases.read(case), experts, fast=True, compiled=False, threads=2).net
        self.loss, self.batch = self._loss, batch
        if compiled:
            require_compiler()
            self.loss = torch.compile(self._loss)
        self.train_data, self.test = read(train), test
        self.epochs, self.entropy_weight, self.seed = epochs, entropy_weight, seed
        gates = list(self.net.gates.parameters())
        others = [p for p in self.net.parameters() if all(p is not gate for gate in gates)]
        groups = [{"params": others, "lr": rate}, {"params": gates, "lr": rate * gate_factor}]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        steps = epochs * (len(self.train_data.labels[0]) // batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in groups],
            total_steps=steps + 1,
            cycle_momentum=False,
            final_div_factor=rate / 25 / min(END_RATE, rate / 10),  # 25: PyTorch's default, and Paddle's
        )

    def run(self):
        self.net.train()
        for batch in self.train_data.batches(self.batch, self.epochs, self.seed):
            self._step(_as_input(batch.inputs[0]), torch.from_numpy(batch.labels[0]))

    def _loss(self, images, labels):
        loss = sum(F.cross_entropy(*task) for task in zip(self.net(images), labels.unbind(1)))
        for gate in self.net.gates:
            selectors = gate.selectors()
            loss = loss - self.entropy_weight * (selectors * (selectors + 1e-6).log()).sum()
        return loss

    def _step(self, images, labels):
        self.optimizer.zero_grad()
        self.loss(images, labels).backward()
        self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def evaluate(self):
        """The accuracy of each task on the test data, and the number of experts in use."""
        self.net.eval()
        test = read(self.test)
        images, labels = test.inputs[0], test.labels[0]
        right = np.zeros(labels.shape[1])
        for begin in range(0, len(images), 500):
            logits = self.net(_as_input(images[begin : begin + 500]))
            decisions = np.stack([task.argmax(1).numpy() for task in logits], axis=1)
            right += (decisions == labels[begin : begin + 500]).sum(axis=0)
        weights = torch.stack([gate() for gate in self.net.gates])
        return {"accuracies": (right / len(images)).tolist(), "experts_used": int((weights.amax(0) > 0).sum())}


def _as_input(images):
    scaled = torch.from_numpy(images[:, None].astype("float32") / np.float32(255))
    return scaled.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    process_settings.keep_freed_memory()
    recipe = Recipe(**json.loads(sys.argv[1]))
    recipe.run()
    print("trained", flush=True)
    print(json.dumps(recipe.evaluate()))
