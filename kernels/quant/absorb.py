"""The products of attention's two absorbed matrices, one a head: queries into the latent space, values out of it.

Legend: T tokens, H heads, n width of a head's query, C latent width, v width of a head's value.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.quant.tiles import PLAIN, Tile, store_tile, tile_for

TILES = {
    torch.bfloat16: (
        Tile(rows=16, columns=128, inner=64, swap=True, num_warps=8, num_stages=3),
        Tile(rows=64, columns=128, inner=64, swap=True, num_warps=8, num_stages=3),
        Tile(rows=128, columns=128, inner=64, swap=False, num_warps=8, num_stages=3),
    ),
    torch.float32: (Tile(rows=32, columns=32, inner=32, swap=False, num_warps=4, num_stages=2),),
}


@triton.jit
def head_kernel(
    x, w, y, num_rows, num_columns, width, x_token, x_head, w_head, w_column, w_inner, y_token, y_head,
    SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program for a head's tile: y[t, h, j] is the sum over i of x[t, h, i] times w[h, i, j]."""
    head = tl.program_id(2).to(tl.int64)
    n_first = tl.program_id(0) * BN
    o_n = n_first + tl.arange(0, BN)
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_k = tl.arange(0, BK)
    m_m = o_m < num_rows
    m_n = o_n < num_columns
    p_x = x + head * x_head + o_m.to(tl.int64)[:, None] * x_token
    p_w = w + head * w_head + o_n[None, :] * w_column
    b_y = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for first in range(0, width, BK):
        m_k = first + o_k < width
        b_x = tl.load(p_x + (first + o_k)[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_w + (first + o_k)[:, None] * w_inner, mask=m_k[:, None] & m_n[None, :], other=0.0)
        if SWAP:
            b_y = tl.dot(b_w.T, b_x.T, b_y, input_precision="ieee")
        else:
            b_y = tl.dot(b_x, b_w, b_y, input_precision="ieee")
    store_tile(y + head * y_head, b_y, o_m.to(tl.int64), o_n, y_token, m_m, m_n, SWAP)


@functools.cache
def _build(tile: Tile, number: str, *, across: bool, aligned: bool) -> Build:
    strides = ("x_token", "x_head", "y_token", "y_head", "w_head", "w_inner" if across else "w_column")
    return Build(
        kernel=head_kernel,
        types=dict.fromkeys(("x", "w", "y"), f"*{number}") | dict.fromkeys(strides[:5], "i64"),
        constants=tile.constants() | {"w_column" if across else "w_inner": 1},
        divisible=("width", "num_columns", *strides) if aligned else (),
        num_warps=tile.num_warps, num_stages=tile.num_stages, tensor_cores=number == "bf16",
    )  # fmt: skip


def configs() -> list[Build]:
    """Every tile, for both ways in which the weights lie."""
    return [
        _build(tile, PLAIN[dtype], across=across, aligned=True)
        for dtype, tiles in TILES.items()
        for tile in tiles
        for across in (True, False)
    ]


def absorb_queries(q_THn: torch.Tensor, w_uk_HnC: torch.Tensor, *, out_THC: torch.Tensor | None = None) -> torch.Tensor:
    """Each head's query times its key up-projection: [T, H, C] in q's dtype; see `product_reference.absorb_queries`.

    q: [T, H, n], w_uk: [H, n, C] contiguous; both bfloat16 or both float32. out: where to write, perhaps the beginning
    of wider records; a new tensor if None. In q and out the numbers of a head lie side by side, at any other strides.
    """
    return _by_head(q_THn, w_uk_HnC, out_THC, across=True)


def expand_values(
    latent_THC: torch.Tensor, w_uv_HvC: torch.Tensor, *, out_THv: torch.Tensor | None = None
) -> torch.Tensor:
    """Each head's latent output times its value up-projection: [T, H, v] in latent's dtype.

    latent: [T, H, C], w_uv: [H, v, C] contiguous, otherwise as `absorb_queries`; see `product_reference.expand_values`.
    """
    return _by_head(latent_THC, w_uv_HvC, out_THv, across=False)


def _by_head(x_THi: torch.Tensor, w: torch.Tensor, out_THj: torch.Tensor | None, *, across: bool) -> torch.Tensor:
    """across: w is [H, i, j], else [H, j, i]; i is summed over."""
    num_tokens, num_heads, width = x_THi.shape
    num_columns = w.shape[2] if across else w.shape[1]
    expected = (num_heads, width, num_columns) if across else (num_heads, num_columns, width)
    assert w.shape == expected and w.is_contiguous(), f"weights {tuple(w.shape)}, must be {expected} and contiguous"
    assert x_THi.dtype == w.dtype and w.dtype in TILES, f"{x_THi.dtype} times {w.dtype}, must be bfloat16 or float32"
    if out_THj is None:
        out_THj = torch.empty((num_tokens, num_heads, num_columns), dtype=x_THi.dtype, device=x_THi.device)
    assert out_THj.shape == (num_tokens, num_heads, num_columns), f"out has shape {tuple(out_THj.shape)}"
    assert out_THj.dtype == x_THi.dtype, f"out is {out_THj.dtype}, must be {x_THi.dtype}"
    for name, tensor in (("x", x_THi), ("out", out_THj)):
        assert tensor.stride(2) == 1, f"numbers of a head of {name} are {tensor.stride(2)} apart, must be side by side"
    tile = tile_for(TILES[w.dtype], num_tokens)
    strides = {
        "x_token": x_THi.stride(0), "x_head": x_THi.stride(1), "w_head": w.stride(0),
        "y_token": out_THj.stride(0), "y_head": out_THj.stride(1),
    }  # fmt: skip
    strides |= {"w_inner": w.stride(1)} if across else {"w_column": w.stride(1)}
    aligned = not any(number % 16 for number in (width, num_columns, *strides.values()))
    grid = (triton.cdiv(num_columns, tile.columns), triton.cdiv(num_tokens, tile.rows), num_heads)
    _build(tile, PLAIN[w.dtype], across=across, aligned=aligned).launch(
        grid, x=x_THi, w=w, y=out_THj, num_rows=num_tokens, num_columns=num_columns, width=width, **strides
    )
    return out_THj
