"""Root-mean-square norm.

Legend: T tokens, D width.
"""

from __future__ import annotations

import torch


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension: x * rsqrt(mean(x^2) + eps) * weight, in float32, cast back once.

    x: [..., D] float32 or bfloat16. weight: [D] float32. Returns x's shape and dtype.
    """
    if x_TD.dtype == torch.float32:
        return torch.nn.functional.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return torch.nn.functional.rms_norm(x_TD.float(), weight_D.shape, weight_D, eps).to(x_TD.dtype)


def add_rms_norm(
    delta_TD: torch.Tensor, residual_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add to the residual stream and norm the sum: returns (normed, new residual), both in the residual's dtype.

    The norm sees the float32 sum before it is rounded to the residual's dtype, as the official demo does.
    """
    if residual_TD.dtype == torch.float32:
        total_TD = residual_TD + delta_TD
        return rms_norm(total_TD, weight_D, eps), total_TD
    total_TD = residual_TD.float() + delta_TD.float()
    return rms_norm(total_TD, weight_D, eps).to(residual_TD.dtype), total_TD.to(residual_TD.dtype)
