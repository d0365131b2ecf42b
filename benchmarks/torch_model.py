"""The same network in PyTorch, dense or skipping experts without weight. Runs in an interpreter without Paddle."""

import case as cases
import torch
import torch.nn.functional as F
from torch import nn

RENAMED = {"_mean": "running_mean", "_variance": "running_var"}  # Paddle's name -> PyTorch's, of batch norm


def _block(channels_in, channels_out):
    # as ours: no bias before batch norm, and ReLU after max-pool, where it has a quarter of the work
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
    def __init__(self, weights, skipping):
        super().__init__()
        self.skipping = skipping
        counts = {part: len({key.split(".")[1] for key in weights if key.startswith(part)}) for part in
                  ("experts", "gates")}  # fmt: skip
        size, hidden = weights["towers.0.layers.0.weight"].shape[1], weights["towers.0.layers.2.weight"].shape[0]
        classes = weights["towers.0.layers.4.weight"].shape[0]
        tasks = range(counts["gates"])
        self.experts = nn.ModuleList([_expert(size) for _ in range(counts["experts"])])
        self.gates = nn.ModuleList(
            [
                _Gate(counts["experts"], *(weights[f"gates.{t}.{name}_logits"] for name in ("selector", "mixing")))
                for t in tasks
            ]
        )
        self.towers = nn.ModuleList([_tower(size, hidden, classes) for _ in tasks])
        found = self.load_state_dict(weights, strict=False)
        assert all(key.endswith("num_batches_tracked") for key in found.missing_keys), found
        assert found.unexpected_keys == ["step"], found

    def forward(self, image):
        weights = torch.stack([gate() for gate in self.gates])  # [T, n]
        chosen = range(len(self.experts))
        if self.skipping:
            chosen = torch.nonzero(weights.amax(dim=0) > 0).flatten().tolist()
        outputs = torch.stack([self.experts[i](image) for i in chosen])  # [n, B, H]
        mixtures = torch.einsum("tn,nbh->tbh", weights[:, list(chosen)], outputs)
        return [tower(mixture) for tower, mixture in zip(self.towers, mixtures)]


class TorchRun:
    """An eager run with a case's weights, Adam and PyTorch's own defaults; the gates' regulariser is left out.

    Args:
        path: of the case.
        skipping: compute only the experts that have a weight.
        threads: of PyTorch.
    """

    def __init__(self, path, skipping, threads):
        torch.set_num_threads(threads)
        case = cases.Case(path)
        weights = {_renamed(key): _as_torch(key, value) for key, value in case.weights.items()}
        self.batch = [torch.from_numpy(item) for item in case.batch]
        self.net = _Mixture(weights, skipping)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=case.hyper.get("optimizer__learning_rate", 0.001))

    @torch.inference_mode()
    def predict(self):
        self.net.eval()
        return [z.numpy() for z in self.net(self.batch[0])]

    def step(self):
        """One training step: (loss before it, None)."""
        self.net.train()
        image, *labels = self.batch
        loss = sum(F.cross_entropy(z, label) for z, label in zip(self.net(image), labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss), None


def _renamed(key):
    head, _, last = key.rpartition(".")
    return f"{head}.{RENAMED[last]}" if last in RENAMED else key


def _as_torch(key, value):
    """Paddle's linear weights are [in, out], PyTorch's [out, in]."""
    linear = value.ndim == 2 and key.endswith(".weight")
    return torch.from_numpy(value.T.copy() if linear else value)
