"""Operations of the training forward pass with gradients of their own: they touch memory less than autograd's."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

HEAD_ROWS = 256
"""Rows of logits at a time: their float32 values stay in a processor's cache."""


class RmsNorm(Function):
    """`rms_norm(x, weight, eps)` of [T, D], computed in float32, given as `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        """Normalise."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Gradients of x and weight."""
        x, scale, weight = ctx.saved_tensors
        grad = grads[0].float()
        normed = x * scale
        by_weight = (grad * normed).sum(0)
        grad = grad * weight
        along = (grad * normed).mean(-1, keepdim=True)
        by_x = grad.addcmul_(normed, along, value=-1.0).mul_(scale)
        return by_x.to(x.dtype), by_weight, None, None


class HeadLoss(Function):
    """Cross entropy [n] of `h [n, D] @ weight [V, D].T` for targets [n], and its weighted mean, which has gradients.

    Logits live for a few rows at a time; the gradients are made in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, h: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted mean, and the losses."""
        shares = weights / weights.sum()
        losses = torch.empty(len(targets))
        needed = any(ctx.needs_input_grad)
        by_h, by_weight = torch.empty_like(h), torch.zeros(weight.shape)
        for start in range(0, len(targets), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            logits = (h[rows] @ weight.t()).float()
            total = logits.logsumexp(-1, keepdim=True)
            picked = targets[rows, None]
            losses[rows] = (total - logits.gather(-1, picked))[:, 0]
            if needed:
                slope = logits.sub_(total).exp_()
                slope.scatter_add_(-1, picked, torch.full(picked.shape, -1.0))
                small = slope.mul_(shares[rows, None]).to(h.dtype)
                by_h[rows] = small @ weight
                by_weight += small.t() @ h[rows]
        ctx.save_for_backward(by_h, by_weight)
        ctx.mark_non_differentiable(losses)
        return (losses * shares).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Gradients of h and weight."""
        by_h, by_weight = ctx.saved_tensors
        return by_h * grads[0].to(by_h.dtype), (by_weight * grads[0]).to(by_h.dtype), None, None
