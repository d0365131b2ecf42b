"""The same network in PyTorch, from the plain form to the fastest we know; Paddle need not be installed."""

import torch
import torch.nn.functional as F
from torch import nn
from worker import Absent, Case

RENAMED = {"_mean": "running_mean", "_variance": "running_var"}  # of batch norm: Paddle's name -> PyTorch's


def _block(channels_in, channels_out):
    # as in ours: no bias before batch norm, and ReLU after pooling, where there is a quarter of the work
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 5, bias=False), nn.BatchNorm2d(channels_out), nn.MaxPool2d(2), nn.ReLU()
    )


class _Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def _expert(size):
    return _Layers(
        _block(1, 10), _block(10, 20), nn.Flatten(), nn.Linear(720, 50), nn.ReLU(), nn.Linear(50, size), nn.ReLU()
    )


class _GroupedExperts(nn.Module):
    """All experts as one network: grouped convolutions, and batched products for the linear layers.

    Args:
        experts: from ``_expert``; their parameters are copied.
    """

    def __init__(self, experts):
        super().__init__()
        n = self.expert_num = len(experts)

        def block(i):
            convolutions = [expert.layers[i][0] for expert in experts]
            norms = [expert.layers[i][1] for expert in experts]
            channels_in = convolutions[0].in_channels
            groups = 1 if i == 0 else n  # all experts see the same image
            channels_out = n * convolutions[0].out_channels
            grouped = nn.Conv2d(groups * channels_in, channels_out, 5, bias=False, groups=groups)
            norm = nn.BatchNorm2d(channels_out)
            grouped.weight = nn.Parameter(torch.cat([convolution.weight.detach() for convolution in convolutions]))
            states = [one.state_dict() for one in norms]
            joined = {key: torch.cat([state[key] for state in states]) for key in states[0] if states[0][key].ndim}
            norm.load_state_dict(joined, strict=False)
            return nn.Sequential(grouped, norm, nn.MaxPool2d(2), nn.ReLU())

        self.blocks = nn.Sequential(block(0), block(1))
        linears = [[expert.layers[i] for expert in experts] for i in (3, 5)]
        self.weights = nn.ParameterList([torch.stack([one.weight.detach() for one in layer]) for layer in linears])
        self.biases = nn.ParameterList([torch.stack([one.bias.detach() for one in layer]) for layer in linears])

    def forward(self, image):
        x = self.blocks(image)  # [B, n * 20, 6, 6]
        x = x.reshape(len(x), self.expert_num, -1).transpose(0, 1)  # [n, B, 720]
        for weight, bias in zip(self.weights, self.biases):
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2)).relu()
        return x  # [n, B, H]


def _tower(size, hidden, classes):
    return _Layers(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class _Gate(nn.Module):
    """A static DSelect-k gate (arXiv 2106.03760, section 3) with a band of width 1."""

    def __init__(self, expert_num, selector_logits, mixing_logits):
        super().__init__()
        self.selector_logits = nn.Parameter(selector_logits)
        self.mixing_logits = nn.Parameter(mixing_logits)
        digits = (expert_num - 1).bit_length()
        place = 2 ** torch.arange(digits - 1, -1, -1)
        bits = torch.arange(expert_num)[:, None] // place % 2  # [n, m]
        self.register_buffer("sign", (2 * bits - 1).float(), persistent=False)

    def forward(self):
        z = self.selector_logits.reshape(len(self.mixing_logits), 1, -1)  # [k, 1, m]
        u = (z * self.sign + 0.5).clamp(0, 1)
        selectors = (u * u * (3 - 2 * u)).prod(dim=-1)  # [k, n]
        return self.mixing_logits.softmax(0) @ selectors


class _Mixture(nn.Module):
    """Computes the dense mixture; ``experts`` says how, see ``TorchRun``."""

    def __init__(self, weights, active, experts):
        super().__init__()
        size, hidden = weights["towers.0.layers.0.weight"].shape[1], weights["towers.0.layers.2.weight"].shape[0]
        classes = weights["towers.0.layers.4.weight"].shape[0]
        expert_num, task_num = (
            len({key.split(".")[1] for key in weights if key.startswith(part)}) for part in ("experts", "towers")
        )
        self.experts = nn.ModuleList([_expert(size) for _ in range(expert_num)])
        logits = [[weights[f"gates.{t}.{name}_logits"] for name in ("selector", "mixing")] for t in range(task_num)]
        self.gates = nn.ModuleList([_Gate(expert_num, *of_task) for of_task in logits])
        self.towers = nn.ModuleList([_tower(size, hidden, classes) for _ in range(task_num)])
        found = self.load_state_dict(weights, strict=False)
        assert all(key.endswith("num_batches_tracked") for key in found.missing_keys), found
        assert found.unexpected_keys == ["step"], found
        self.skipping, self.fixed = experts == "needed", None
        if experts.startswith("fixed"):
            self.fixed = active
            self.experts = nn.ModuleList([self.experts[i] for i in active])
        if experts.endswith("grouped"):
            self.experts = _GroupedExperts(self.experts)

    def forward(self, image):
        weights = torch.stack([gate() for gate in self.gates])  # [T, n]
        if self.fixed is not None:
            weights = weights[:, self.fixed]
        if isinstance(self.experts, _GroupedExperts):
            outputs = self.experts(image)  # [n, B, H]
        else:
            chosen = list(range(len(self.experts)))
            if self.skipping:
                chosen = torch.nonzero(weights.amax(dim=0) > 0).flatten().tolist()
                weights = weights[:, chosen]
            outputs = torch.stack([self.experts[i](image) for i in chosen])  # [n, B, H]
        mixtures = torch.einsum("tn,nbh->tbh", weights, outputs)
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


class TorchRun:
    """The network with a case's weights, and Adam; the gates' regulariser is left out.

    Args:
        path: of the case.
        experts: "each": one expert after the other; "grouped": all as one network; "needed": one after the other,
            skipping those without weight, looked up at every step; "fixed", "fixed grouped": like "each" and
            "grouped", but without the experts that have no weight in the case.
        fast: channels-last and fused Adam instead of PyTorch's defaults.
        compiled: by ``torch.compile``.
        threads: of PyTorch.
    Raises:
        Absent: ``torch.compile`` does not work here.
    """

    def __init__(self, path, experts, fast, compiled, threads):
        torch.set_num_threads(threads)
        if compiled:
            _require_compiler()
        case = Case(path)
        weights = {_renamed(key): _as_torch(key, value) for key, value in case.weights.items()}
        self.batch = [torch.from_numpy(item) for item in case.batch]
        self.net = _Mixture(weights, case.active, experts)
        if fast:
            self.net = self.net.to(memory_format=torch.channels_last)
            self.batch[0] = self.batch[0].contiguous(memory_format=torch.channels_last)
        rate = case.hyper.get("optimizer__learning_rate", 0.001)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=rate, fused=fast or None)
        self.forward = torch.compile(self.net) if compiled else self.net

    @torch.inference_mode()
    def predict(self):
        """Logits of each task."""
        self.net.eval()
        return [z.numpy() for z in self.forward(self.batch[0])]

    def step(self):
        """One training step: (loss before it, None for the experts in use)."""
        self.net.train()
        image, *labels = self.batch
        loss = sum(F.cross_entropy(z, label) for z, label in zip(self.forward(image), labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss), None


def _require_compiler():
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except Exception as error:  # its own types: for want of a C++ compiler, of Python's headers, ...
        raise Absent(f"torch.compile does not work here: {str(error).splitlines()[0]}") from error


def _renamed(key):
    head, _, last = key.rpartition(".")
    return f"{head}.{RENAMED[last]}" if last in RENAMED else key


def _as_torch(key, value):
    """Paddle's linear weights are [in, out], PyTorch's [out, in]."""
    linear = value.ndim == 2 and key.endswith(".weight")
    return torch.from_numpy(value.T.copy() if linear else value)
