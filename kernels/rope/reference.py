"""Rotary embedding with YaRN frequencies, in the two pairings that the model uses.

Legend: T tokens, H heads, R rotated width, P = R / 2 pairs.
"""

from __future__ import annotations

import math

import torch

from baleen.model_spec import RopeSpec


def yarn_correction_range(rope: RopeSpec, dim: int) -> tuple[int, int]:
    """First and last pair between which YaRN blends; both are clamped to the table.

    Source: YaRN (arXiv 2309.00071) as in the official demo: floor of the dimension that turns beta_fast times within
    the original context, ceil of the one that turns beta_slow times.
    """

    def pair_that_turns(times: float) -> float:
        return dim * math.log(rope.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = math.floor(pair_that_turns(rope.beta_fast))
    high = math.ceil(pair_that_turns(rope.beta_slow))
    return max(low, 0), min(high, dim - 1)


def yarn_inverse_frequencies(rope: RopeSpec, dim: int) -> torch.Tensor:
    """Angular step per position of each pair, [dim / 2] float32: low pairs keep theirs, high ones are slower."""
    low, high = yarn_correction_range(rope, dim)
    frequencies_P = 1.0 / (rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    # a width of zero would divide by zero
    width = max(high - low, 0.001)
    kept_P = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    # in this order, as the official demo: at position 70,000 one unit in the last place is 1e-4 radians
    return frequencies_P / rope.factor * (1 - kept_P) + frequencies_P * kept_P


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature: 0.1 * mscale * ln(factor) + 1, or 1 without scaling."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(rope: RopeSpec, qk_head_dim: int) -> float:
    """Attention scale: qk_head_dim^-0.5 times the squared temperature of mscale_all_dim."""
    return float(qk_head_dim**-0.5 * yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2)


def rotations(positions_T: torch.Tensor, inverse_frequencies_P: torch.Tensor, rope: RopeSpec) -> torch.Tensor:
    """Unit complex numbers cos + i sin per token and pair: [T, P] complex64.

    The angle is rounded to float32 before cos and sin. The magnitude is mscale / mscale_all_dim, 1 for V3.2.
    """
    angles_TP = positions_T.to(torch.float32)[:, None] * inverse_frequencies_P
    magnitude = yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim)
    return torch.polar(torch.full_like(angles_TP, magnitude), angles_TP)


def rotate_interleaved(x_THR: torch.Tensor, rotations_TP: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (x0, x1), (x2, x3), ...: the pairing of latent attention. x: [T, H, R]; same shape and dtype out."""
    pairs_THP = torch.view_as_complex(x_THR.float().reshape(*x_THR.shape[:-1], -1, 2))
    return torch.view_as_real(pairs_THP * rotations_TP[:, None, :]).flatten(-2).to(x_THR.dtype)


def rotate_half_split(x_THR: torch.Tensor, rotations_TP: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (x_i, x_(i + R/2)): the pairing of the indexer. x: [T, H, R]; same shape and dtype out."""
    real_THP, imaginary_THP = x_THR.float().chunk(2, dim=-1)
    turned_THP = torch.complex(real_THP, imaginary_THP) * rotations_TP[:, None, :]
    return torch.cat((turned_THP.real, turned_THP.imag), dim=-1).to(x_THR.dtype)


def rotate_first(x_THX: torch.Tensor, rotations_TP: torch.Tensor) -> torch.Tensor:
    """Rotate the FIRST 2 * P of X numbers in half-split pairs, as the indexer does: [T, H, X]."""
    width = 2 * rotations_TP.shape[1]
    return torch.cat((rotate_half_split(x_THX[..., :width], rotations_TP), x_THX[..., width:]), dim=-1)
