"""Float8 with one scale a group, of numbers that a kernel holds in registers.

Legend: M rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.quant.activations import scale_of, scaled_float8


@triton.jit
def quantise_groups(b_x):
    """Rows of float32 [M, 128] to (float8_e4m3fn [M, 128], float32 scales [M]), as `reference.quantise_activations`.

    A scale is a power of two, hence its reciprocal is exact, and so is the product with it.
    """
    b_scale = scale_of(tl.max(tl.abs(b_x), 1), True)
    return scaled_float8(b_x, b_scale[:, None], True), b_scale
