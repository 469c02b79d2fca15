"""Both pairings of the rotary embedding on numbers in registers.

Legend: M rows, P pairs, R = 2 * P rotated width.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(b_real, b_imaginary, b_cos, b_sin):
    """Complex product of float32 pairs with unit numbers: (real, imaginary)."""
    return b_real * b_cos - b_imaginary * b_sin, b_real * b_sin + b_imaginary * b_cos


@triton.jit
def rotate_pairs(b_x, b_turn, M: tl.constexpr, P: tl.constexpr):
    """Rotate (x0, x1), (x2, x3), ... of float32 rows [M, R]. b_turn: cos and sin by turns, [M or 1, R]."""
    b_real, b_imaginary = tl.split(tl.reshape(b_x, (M, P, 2)))
    b_cos, b_sin = tl.split(tl.reshape(b_turn, (1, P, 2)))
    b_real, b_imaginary = rotate(b_real, b_imaginary, b_cos, b_sin)
    return tl.reshape(tl.join(b_real, b_imaginary), (M, 2 * P))
