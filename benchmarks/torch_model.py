"""The same network in PyTorch, from the plain form to the fastest we know; Paddle need not be installed."""

import torch
import torch.nn.functional as F
from torch import nn
from worker import Absent

RENAMED = {"_mean": "running_mean", "_variance": "running_var"}  # of batch norm: Paddle's name -> PyTorch's


class _Layers(nn.Module):
    """Layers in a row, whose parameters have the names of ours."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def _block(channels_in, channels_out, groups=1):
    # as in ours: no bias before batch norm, and ReLU after pooling, where there is a quarter of the work
    convolution = nn.Conv2d(channels_in, channels_out, 5, bias=False, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.MaxPool2d(2), nn.ReLU())


def _linear(sizes):
    return [layer for wide in zip(sizes, sizes[1:]) for layer in (nn.Linear(*wide), nn.ReLU())]


def _expert(weights):
    """An expert of the shape of ``weights``' experts: on images, or linear layers on a table."""
    ours = [value for key, value in weights.items() if key.startswith("experts.0.") and key.endswith(".weight")]
    sizes = [value.shape[0] for value in ours if value.ndim == 2]
    if any(value.ndim == 4 for value in ours):
        return _Layers(_block(1, 10), _block(10, 20), nn.Flatten(), *_linear([720, *sizes]))
    return _Layers(*_linear([ours[0].shape[1], *sizes]))


class _GroupedExperts(nn.Module):
    """All experts as one network: grouped convolutions, and batched products for the linear layers.

    Args:
        experts: from ``_expert``; their parameters are copied.
    """

    def __init__(self, experts):
        super().__init__()
        n = self.expert_num = len(experts)
        layers = list(zip(*[expert.layers for expert in experts]))  # layer by layer, of all experts
        self.blocks = None
        if isinstance(layers[0][0], nn.Sequential):  # of convolutions; all experts see the same image
            self.blocks = nn.Sequential(_block(1, 10 * n), _block(10 * n, 20 * n, groups=n))
            for block, blocks in zip(self.blocks, layers):
                states = [one.state_dict() for one in blocks]
                block.load_state_dict(
                    {key: torch.cat([state[key] for state in states]) for key in states[0] if states[0][key].ndim},
                    strict=False,
                )
        linear = [layer for layer in layers if isinstance(layer[0], nn.Linear)]
        self.weights, self.biases = (
            nn.ParameterList([torch.stack([getattr(one, name).detach() for one in layer]) for layer in linear])
            for name in ("weight", "bias")
        )

    def forward(self, x):
        layers = list(zip(self.weights, self.biases))
        if self.blocks is None:  # the first layers side by side, since all experts have the same input
            (weight, bias), *layers = layers
            x = F.linear(x, weight.flatten(0, 1), bias.flatten()).relu()
        else:
            x = self.blocks(x)
        x = x.reshape(len(x), self.expert_num, -1).transpose(0, 1)  # [n, B, width]
        for weight, bias in layers:
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)).relu()
        return x  # [n, B, H]


class _TableInput(nn.Module):
    """Numeric features, and the embeddings of ids: one table for all fields, as in ours."""

    def __init__(self, weight, vocabulary_sizes):
        super().__init__()
        self.embedding = nn.Embedding(*weight.shape)
        offsets = torch.tensor([0, *vocabulary_sizes[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, numeric, ids):
        return torch.cat([numeric, self.embedding(ids + self.offsets).flatten(1)], dim=1)


class _Gate(nn.Module):
    """A shared DSelect-k gate (arXiv 2106.03760, section 3) with a band of width 1."""

    def __init__(self, expert_num, selector_logits, mixing_logits):
        super().__init__()
        self.selector_logits = nn.Parameter(selector_logits)
        self.mixing_logits = nn.Parameter(mixing_logits)
        digits = (expert_num - 1).bit_length()
        place = 2 ** torch.arange(digits - 1, -1, -1)
        bits = torch.arange(expert_num)[:, None] // place % 2  # [n, m]
        self.register_buffer("sign", (2 * bits - 1).float(), persistent=False)

    def selectors(self):
        z = self.selector_logits.reshape(len(self.mixing_logits), 1, -1)  # [k, 1, m]
        u = (z * self.sign + 0.5).clamp(0, 1)
        return (u * u * (3 - 2 * u)).prod(dim=-1)  # [k, n]

    def forward(self):
        return self.mixing_logits.softmax(0) @ self.selectors()


class _Mixture(nn.Module):
    """The network; ``experts`` says how experts are computed, see ``TorchModel``."""

    def __init__(self, weights, active, experts, vocabulary_sizes):
        super().__init__()
        expert_num, task_num = (
            len({key.split(".")[1] for key in weights if key.startswith(part)}) for part in ("experts", "towers")
        )
        self.inputs = None
        if vocabulary_sizes:
            self.inputs = _TableInput(weights["inputs.embedding.weight"], vocabulary_sizes)
        self.experts = nn.ModuleList([_expert(weights) for _ in range(expert_num)])
        logits = [[weights[f"gates.{t}.{name}_logits"] for name in ("selector", "mixing")] for t in range(task_num)]
        self.gates = nn.ModuleList([_Gate(expert_num, *of_task) for of_task in logits])
        self.towers = nn.ModuleList([_tower(weights, t) for t in range(task_num)])
        found = self.load_state_dict(weights, strict=False)
        assert all(key.endswith("num_batches_tracked") for key in found.missing_keys), found
        assert found.unexpected_keys == ["step"], found
        self.skipping, self.grouped = experts == "needed", experts.endswith("grouped")
        self.chosen = active if experts.startswith("fixed") else list(range(expert_num))
        self.experts = nn.ModuleList([self.experts[i] for i in self.chosen])
        if self.grouped:
            self.experts = _GroupedExperts(self.experts)

    def forward(self, *inputs):
        x = inputs[0] if self.inputs is None else self.inputs(*inputs)
        weights, chosen = torch.stack([gate() for gate in self.gates]), self.chosen  # [T, n]
        if self.grouped:
            outputs = self.experts(x)  # [n, B, H]
        elif self.skipping:
            chosen = torch.nonzero(weights.amax(dim=0) > 0).flatten().tolist()
            outputs = torch.stack([self.experts[i](x) for i in chosen])
        else:
            outputs = torch.stack([expert(x) for expert in self.experts])
        if len(chosen) < weights.shape[1]:
            weights = weights[:, chosen]
        mixtures = torch.einsum("tn,nbh->tbh", weights, outputs)
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


def _tower(weights, task):
    shapes = [weights[f"towers.{task}.layers.{i}.weight"].shape for i in (0, 2, 4)]
    return _Layers(*_linear([shapes[0][1], *(shape[0] for shape in shapes)])[:-1])


class TorchModel:
    """The network, and Adam; the gates' regulariser is left out.

    Args:
        case: cases.Case.
        experts: "each": one expert after the other; "grouped": all as one network; "needed": one after the other,
            skipping those without weight, looked up at every step; "fixed", "fixed grouped": like "each" and
            "grouped", but without the experts that have no weight in the case.
        fast: fused Adam, and channels-last images, instead of PyTorch's defaults.
        compiled: by ``torch.compile``.
        threads: of PyTorch.
    Raises:
        Absent: ``torch.compile`` does not work here.
    """

    def __init__(self, case, experts, fast, compiled, threads):
        torch.set_num_threads(threads)
        if compiled:
            require_compiler()
        weights = {_renamed(key): _as_torch(key, value) for key, value in case.weights.items()}
        self.inputs, self.labels = ([torch.from_numpy(item) for item in items] for items in (case.inputs, case.labels))
        self.net = _Mixture(weights, case.active, experts, case.hyper.get("input__vocabulary_sizes"))
        if fast and self.inputs[0].ndim == 4:
            self.net = self.net.to(memory_format=torch.channels_last)
            self.inputs[0] = self.inputs[0].contiguous(memory_format=torch.channels_last)
        rate = case.hyper.get("optimizer__learning_rate", 0.001)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate, fused=fast or None)
        self.forward = torch.compile(self.net) if compiled else self.net

    @torch.inference_mode()
    def predict(self):
        """Logits of each task."""
        if self.net.training:  # eval() visits all layers, which a call of a small batch would notice
            self.net.eval()
        return [z.numpy() for z in self.forward(*self.inputs)]

    def step(self):
        """One training step: (loss before it, None for the experts in use)."""
        self.net.train()
        loss = sum(_loss(z, label) for z, label in zip(self.forward(*self.inputs), self.labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss), None


def _loss(logits, label):
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], label)
    return F.cross_entropy(logits, label)


def require_compiler():
    """Raise Absent if ``torch.compile`` does not work here."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except Exception as error:  # its own types: for want of a C++ compiler, of Python's headers, ...
        raise Absent(f"torch.compile does not work here: {str(error).splitlines()[0]}") from error


def _renamed(key):
    head, _, last = key.rpartition(".")
    return f"{head}.{RENAMED[last]}" if last in RENAMED else key


def _as_torch(key, value):
    """Paddle's linear weights are [in, out], PyTorch's [out, in]."""
    linear = value.ndim == 2 and key.endswith(".weight") and "embedding" not in key
    return torch.from_numpy(value.T.copy() if linear else value)
