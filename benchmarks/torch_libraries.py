"""Multi-task networks of PyTorch's libraries for recommenders, as they come, trained on a table; no Paddle is needed.

Sizes, inputs, Adam and losses are those of our network. Their softmax gates weigh every expert for each example, so
all experts are computed. What their classes offer no argument for stays as it is.
"""

import torch
import torch.nn.functional as F


class _Library:
    """A training step in a plain loop: the losses of the tasks' probabilities, and Adam in its default form.

    Args:
        case: cases.Case, of which the sizes and the batch are used; the initial weights are the library's.
        threads: of PyTorch.
        seed: of the initial weights.
    """

    def __init__(self, case, threads, seed=0):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.hyper, self.seed = case.hyper, seed
        self.numeric_size, self.task_num = case.inputs[0].shape[1], len(case.labels)
        self.expert_sizes = [*case.hyper["expert_hidden_sizes"], case.hyper["expert_size"]]
        self.net = self.build()
        self.net.train()
        self.take(case)
        rate = case.hyper.get("optimizer__learning_rate", 0.001)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate)

    def build(self):
        """The library's network."""
        raise NotImplementedError

    def form(self, numeric, ids):
        """A batch in the form that the network takes."""
        raise NotImplementedError

    def take(self, case):
        """Go on with the batch of another case."""
        self.input = self.form(*(torch.from_numpy(item) for item in case.inputs))
        self.labels = [torch.from_numpy(label) for label in case.labels]

    @torch.no_grad()
    def predict(self):
        """Probabilities of each task."""
        self.net.eval()
        probabilities = self.net(self.input)
        self.net.train()
        return [of_task.numpy() for of_task in probabilities.unbind(1)]

    def step(self):
        """One training step; returns the loss before it."""
        probabilities = self.net(self.input)  # [B, T]
        loss = sum(F.binary_cross_entropy(*task) for task in zip(probabilities.unbind(1), self.labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class RecHubMMoE(_Library):
    """MMoE of torch-rechub. Its layers always have batch norm: in experts, gates and towers."""

    def build(self):
        from torch_rechub.basic.features import DenseFeature, SparseFeature
        from torch_rechub.models.multi_task import MMOE

        size = self.hyper["input__embedding_size"]
        numeric = DenseFeature("numeric", self.numeric_size)
        fields = [SparseFeature(f"id{i}", n, size) for i, n in enumerate(self.hyper["input__vocabulary_sizes"])]
        tower = {"dims": [self.hyper["tower_size"]]}
        return MMOE(
            [*fields, numeric],
            task_types=["classification"] * self.task_num,
            n_expert=self.hyper["expert_num"],
            expert_params={"dims": self.expert_sizes},
            tower_params_list=[tower] * self.task_num,
        )

    def form(self, numeric, ids):
        return {**{f"id{i}": column for i, column in enumerate(ids.unbind(1))}, "numeric": numeric}


class _DeepCTR(_Library):
    """A network of DeepCTR-Torch, by default without batch norm and dropout; with linear gates, its smallest."""

    def build(self):
        from deepctr_torch.inputs import DenseFeat, SparseFeat

        size = self.hyper["input__embedding_size"]
        fields = [SparseFeat(f"id{i}", n, size) for i, n in enumerate(self.hyper["input__vocabulary_sizes"])]
        numeric = DenseFeat("numeric", self.numeric_size)
        return self.network(
            [*fields, numeric],
            expert_dnn_hidden_units=self.expert_sizes,
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=(self.hyper["tower_size"],),
            task_types=["binary"] * self.task_num,
            task_names=[f"task{t}" for t in range(self.task_num)],
            seed=self.seed,
        )

    def form(self, numeric, ids):
        return torch.cat([ids.float(), numeric], dim=1)  # one matrix, as its own loop makes it

    def network(self, columns, **arguments):
        """The library's network of these columns."""
        raise NotImplementedError


class DeepCTRMMoE(_DeepCTR):
    """Its MMoE."""

    def network(self, columns, **arguments):
        from deepctr_torch.models import MMOE

        return MMOE(columns, num_experts=self.hyper["expert_num"], **arguments)


class DeepCTRPLE(_DeepCTR):
    """Its PLE, with our number of experts on one level: of 8 for two tasks, 3 of each task and 2 that they share."""

    def network(self, columns, **arguments):
        from deepctr_torch.models import PLE

        own = (self.hyper["expert_num"] - 1) // self.task_num  # the most that leave a shared one
        shared = self.hyper["expert_num"] - own * self.task_num
        return PLE(columns, shared_expert_num=shared, specific_expert_num=own, num_levels=1, **arguments)
