"""Float8 of activations, and the Hadamard rotation before it.

Legend: G groups of 128 along the last dimension.
"""

from __future__ import annotations

import functools
import math

import torch

from baleen.model_spec import QUANT_BLOCK

FLOAT8_MAX = 448.0
MIN_ABSMAX = 1e-4


def ue8m0_ceil(scale: torch.Tensor) -> torch.Tensor:
    """Round float32 scales up to powers of two by their bits; exact powers stay. Same shape, float32."""
    bits = scale.float().view(torch.int32)
    exponent = (bits >> 23) & 0xFF
    exponent = exponent + ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (exponent << 23).view(torch.float32)


def quantise_activations(x: torch.Tensor, *, ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise groups of 128 along the last dimension.

    x: [..., n * 128]. Returns (float8_e4m3fn of x's shape, float32 scales [..., n]); x is about q * scale. The group's
    largest magnitude is clamped to at least 1e-4 before it is divided by 448 (official demo, `act_quant`).
    """
    groups = x.float().unflatten(-1, (-1, QUANT_BLOCK))
    absmax = groups.abs().amax(dim=-1).clamp(min=MIN_ABSMAX)
    scale = absmax * torch.tensor(1.0 / FLOAT8_MAX, dtype=torch.float32)
    if ue8m0:
        scale = ue8m0_ceil(scale)
    quantised = (groups / scale[..., None]).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)
    return quantised.flatten(-2), scale


@functools.cache
def hadamard_matrix(size: int) -> torch.Tensor:
    """Orthogonal Hadamard matrix in Sylvester order, [size, size] float32. size: a power of two."""
    assert size > 0 and size & (size - 1) == 0, size
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix / math.sqrt(size)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Rotate the last dimension (a power of two) by the Hadamard matrix: same shape and dtype, float32 inside."""
    rotated: torch.Tensor = (x.float() @ hadamard_matrix(x.shape[-1])).to(x.dtype)
    return rotated
