"""Block-scaled float8 of weight matrices: one float32 multiplier per block of 128 by 128 numbers.

Legend: O rows (outputs), I columns (inputs), a rows of blocks (O / 128, rounded up), b columns of blocks (I / 128,
rounded up). The last block of a row or column may be ragged; the block of row r is always r // 128.
"""

from __future__ import annotations

import functools

import torch

from baleen.model_spec import QUANT_BLOCK, scale_shape
from kernels.quant.reference import FLOAT8_MAX, MIN_ABSMAX, ue8m0_ceil


def quantise_weight(w_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a float32 matrix [O, I]: (float8_e4m3fn [O, I], float32 scales [a, b]), w about q * scale.

    A block's largest magnitude is clamped to at least 1e-4 and divided by 448; scales are rounded up to powers of two.
    """
    rows, columns = w_OI.shape
    a, b = scale_shape(rows, columns)
    # Zeros in the ragged edge leave a block's largest magnitude as it is.
    padded_OI = torch.nn.functional.pad(w_OI, (0, b * QUANT_BLOCK - columns, 0, a * QUANT_BLOCK - rows))
    absmax_ab = padded_OI.view(a, QUANT_BLOCK, b, QUANT_BLOCK).abs().amax(dim=(1, 3)).clamp(min=MIN_ABSMAX)
    scales_ab = ue8m0_ceil(absmax_ab / FLOAT8_MAX)
    # A power of two has an exact reciprocal, so the product rounds as the quotient would.
    return scale_blocks(w_OI.clone(), scales_ab.reciprocal()).to(torch.float8_e4m3fn), scales_ab


def dequantise_weight(
    quantised_OI: torch.Tensor, scales_ab: torch.Tensor, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """float8_e4m3fn [O, I] times its float32 scales [a, b], multiplied in float32 and then cast to `dtype`: [O, I].

    Scales may be any positive numbers. The stored name ends in `_scale_inv`, but it is the multiplier.
    """
    return scale_blocks(_numbers(quantised_OI), scales_ab).to(dtype)


def _numbers(quantised_OI: torch.Tensor) -> torch.Tensor:
    """The float32 numbers of float8 codes, [O, I]."""
    if quantised_OI.device.type != "cpu":
        return quantised_OI.float()
    # On a CPU, looking 256 values up is four times as fast as torch's conversion.
    codes = quantised_OI.contiguous().view(torch.uint8).view(-1).int()
    return torch.index_select(_code_values(), 0, codes).view(quantised_OI.shape)


@functools.cache
def _code_values() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def scale_blocks(w_OI: torch.Tensor, scales_ab: torch.Tensor) -> torch.Tensor:
    """Multiply each block of a contiguous float32 matrix [O, I] by its scale [a, b], in place; returns `w_OI`."""
    rows, columns = w_OI.shape
    assert scales_ab.shape == scale_shape(rows, columns), (w_OI.shape, scales_ab.shape)
    scales_aI = scales_ab.repeat_interleave(QUANT_BLOCK, dim=1)[:, :columns]
    whole = rows // QUANT_BLOCK
    w_OI[: whole * QUANT_BLOCK].view(whole, QUANT_BLOCK, columns).mul_(scales_aI[:whole, None])
    if rows % QUANT_BLOCK:
        w_OI[whole * QUANT_BLOCK :].mul_(scales_aI[whole])
    return w_OI
