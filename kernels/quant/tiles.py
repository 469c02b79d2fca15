"""Sizes of the pieces in which matrix products are computed, and the device code that computes one piece.

Legend: BM rows of x in a tile, BN rows of w in a tile (columns of the product), BK columns of both at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

PLAIN = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Triton's names of the dtypes in which products are computed without scales."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of x (BM), rows of w (BN) and inner columns (BK) of one piece, and the launch that suits it.

    swap: the rows of w are the tensor core's long side, which has at least 64; so x may have few.
    """

    rows: int
    columns: int
    inner: int
    swap: bool
    num_warps: int
    num_stages: int

    def constants(self) -> dict[str, Any]:
        """As a kernel takes them."""
        return {"SWAP": self.swap, "BM": self.rows, "BN": self.columns, "BK": self.inner}


def tile_for(tiles: Sequence[Tile], rows: int) -> Tile:
    """The first tile that takes `rows` rows at once, or else the last; tiles are in ascending order of rows."""
    return next((tile for tile in tiles if rows <= tile.rows), tiles[-1])


@triton.jit
def tile_product(
    x, x_scales, w, w_scales, x_rows, w_rows, first, last, width, x_row, x_scales_row,
    FLOAT8: tl.constexpr, SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Sum over blocks first to last - 1 of BK columns of x times w transposed, float32: [BM, BN], [BN, BM] with SWAP.

    x_rows: int64 [BM], rows of x. w, w_scales: the tile's first row of w, `width` long, and the scales of its block;
    w_rows: int32 [BN], counted from there. All of them exist.

    Without FLOAT8 both are bfloat16 or float32, or x the first and w the second. With it, BK is 128 and the width a
    multiple of it; each sum over 128 columns is multiplied by the scales of x's row and of w's block, and only then
    added, in float32: Hopper's own float8 sums keep about 14 bits.
    """
    o_k = tl.arange(0, BK)
    o_x = x_rows[:, None] * x_row + o_k[None, :]
    o_w = w_rows[:, None] * width + o_k[None, :]
    b_y = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for block in range(first, last):
        if FLOAT8:
            b_x = tl.load(x + o_x + block * BK)
            b_w = tl.load(w + o_w + block * BK)
            b_s = tl.load(x_scales + x_rows * x_scales_row + block) * tl.load(w_scales + block)
            if SWAP:
                b_y += tl.dot(b_w, b_x.T) * b_s[None, :]
            else:
                b_y += tl.dot(b_x, b_w.T) * b_s[:, None]
        else:
            m_k = (block * BK + o_k < width)[None, :]
            b_x = tl.load(x + o_x + block * BK, mask=m_k, other=0.0)
            b_w = tl.load(w + o_w + block * BK, mask=m_k, other=0.0)
            if x.dtype.element_ty == tl.bfloat16 and w.dtype.element_ty == tl.float32:
                # a float32 number is the sum of three bfloat16 ones, whose products with x are exact
                b_high = b_w.to(tl.bfloat16)
                b_w -= b_high.to(tl.float32)
                b_middle = b_w.to(tl.bfloat16)
                b_low = (b_w - b_middle.to(tl.float32)).to(tl.bfloat16)
                if SWAP:
                    b_y = tl.dot(b_low, b_x.T, tl.dot(b_middle, b_x.T, tl.dot(b_high, b_x.T, b_y)))
                else:
                    b_y = tl.dot(b_x, b_low.T, tl.dot(b_x, b_middle.T, tl.dot(b_x, b_high.T, b_y)))
            elif SWAP:
                b_y = tl.dot(b_w, b_x.T, b_y, input_precision="ieee")
            else:
                b_y = tl.dot(b_x, b_w.T, b_y, input_precision="ieee")
    return b_y


@triton.jit
def store_tile(y, b_y, y_rows, y_columns, y_row, m_rows, m_columns, SWAP: tl.constexpr):
    """Write a tile, lying as `tile_product` gives it, to rows int64 [BM] and columns [BN] of y, in y's dtype."""
    if SWAP:
        p_y = y + y_rows[None, :] * y_row + y_columns[:, None]
        m_y = m_rows[None, :] & m_columns[:, None]
    else:
        p_y = y + y_rows[:, None] * y_row + y_columns[None, :]
        m_y = m_rows[:, None] & m_columns[None, :]
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_y)
