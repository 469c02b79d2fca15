"""Muon for matrices, Adam for the rest. Source of Muon: Keller Jordan, kellerjordan.github.io/posts/muon, 2024."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from baleen.model_spec import ModelSpec
from examples.demo_model.model import Parameters


def orthogonalise(x_BMN: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices by five quintic Newton-Schulz steps in bfloat16: [B, M, N]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x_BMN.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-1, -2).contiguous()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        square = x @ x.transpose(-1, -2)
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.transpose(-1, -2) if tall else x).float()


class Optimizer:
    """One step for all parameters. Matrices that are several heads one above the other are split by head."""

    def __init__(self, spec: ModelSpec, parameters: Parameters, *, muon_lr: float, adam_lr: float) -> None:
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        self._parameters = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        self._heads = {
            "self_attn.q_b_proj.weight": spec.num_heads,
            "self_attn.kv_b_proj.weight": 2 * spec.num_heads,
            "self_attn.indexer.wq_b.weight": spec.index_heads,
        }
        self._muon = [name for name in self._parameters if self._is_matrix(name)]
        self._first = {name: torch.zeros_like(tensor) for name, tensor in self._parameters.items()}
        self._second = {n: torch.zeros_like(t) for n, t in self._parameters.items() if n not in set(self._muon)}
        self._steps: dict[str, int] = defaultdict(int)

    @staticmethod
    def _is_matrix(name: str) -> bool:
        return (name.endswith("_proj.weight") and "weights_proj" not in name) or name.endswith(
            ("wq_b.weight", "wk.weight")
        )

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients with learning rates times `scale`, and clear them; what has none is left alone."""
        by_shape: dict[tuple[int, ...], list[tuple[str, torch.Tensor]]] = defaultdict(list)
        for name in self._muon:
            tensor = self._parameters[name]
            if tensor.grad is None:
                continue
            momentum = self._first[name].mul_(0.95).add_(tensor.grad)
            update = tensor.grad.add(momentum, alpha=0.95)
            tensor.grad = None
            heads = next((count for suffix, count in self._heads.items() if name.endswith(suffix)), 1)
            update = update.view(heads, -1, update.shape[-1])
            by_shape[tuple(update.shape[1:])].append((name, update))
        for (rows, columns), group in by_shape.items():
            turned = orthogonalise(torch.cat([update for _, update in group]))
            step = self.muon_lr * scale * max(1.0, rows / columns) ** 0.5
            for (name, _), part in zip(group, turned.split([len(u) for _, u in group]), strict=True):
                tensor = self._parameters[name]
                tensor.mul_(1 - 0.1 * self.muon_lr * scale).sub_(part.reshape(tensor.shape), alpha=step)
        for name, second in self._second.items():
            tensor = self._parameters[name]
            if tensor.grad is None:
                continue
            self._steps[name] += 1
            count = self._steps[name]
            first = self._first[name].mul_(0.9).add_(tensor.grad, alpha=0.1)
            second.mul_(0.98).addcmul_(tensor.grad, tensor.grad, value=0.02)
            rate = self.adam_lr * scale / (1 - 0.9**count)
            tensor.addcdiv_(first, (second / (1 - 0.98**count)).sqrt_().add_(1e-8), value=-rate)
            tensor.grad = None

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {"first": self._first, "second": self._second, "steps": dict(self._steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for own, saved in ((self._first, state["first"]), (self._second, state["second"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self._steps.update(state["steps"])
