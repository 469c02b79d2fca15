"""Float8 matrix product with a scale for each row and 128 columns of x and for each 128 by 128 block of w.

Legend: M rows of x, N rows of w (columns of the product), K columns of both, G = K / 128, a = N / 128 rounded up.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK, scale_shape
from kernels.builds import Build
from kernels.quant.tiles import Tile, store_tile, tile_for, tile_product

TILES = (
    Tile(rows=16, columns=128, inner=128, swap=True, num_warps=8, num_stages=4),
    Tile(rows=32, columns=128, inner=128, swap=True, num_warps=8, num_stages=4),
    Tile(rows=64, columns=128, inner=128, swap=True, num_warps=8, num_stages=3),
    Tile(rows=128, columns=128, inner=128, swap=False, num_warps=8, num_stages=4),
)
WANTED_PROGRAMS = 264
"""Two for each of the 132 multiprocessors of an H200: one loads while the other multiplies."""
ROW_GROUP = 8
"""Tiles of rows that share what they read of w."""
LEAST_BLOCKS = 4
"""Blocks of 128 columns under which a share of K is not worth a program."""


@triton.jit
def product_kernel(
    x, x_scales, w, w_scales, y, num_rows, num_columns, width, x_row, blocks_per_share,
    SHARES: tl.constexpr, GROUP: tl.constexpr,
    SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program a tile and share of the columns; with SHARES, y is float32 [shares, M, N].

    Programs that run together have GROUP tiles of rows and a few of columns, so that both are read from the cache: row
    after row, all of w would be read anew for each.
    """
    m_tile, n_tile = tl.swizzle2d(tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), GROUP)
    n_first = n_tile * BN
    o_n = tl.arange(0, BN)
    o_m = m_tile * BM + tl.arange(0, BM)
    share = tl.program_id(2)
    blocks = width // BK
    first = share * blocks_per_share
    b_y = tile_product(
        x, x_scales, w + n_first.to(tl.int64) * width, w_scales + n_first // 128 * blocks,
        tl.minimum(o_m, num_rows - 1).to(tl.int64), tl.minimum(o_n, num_columns - 1 - n_first),
        first, tl.minimum(first + blocks_per_share, blocks), width, x_row, blocks,
        True, SWAP, BM, BN, BK,
    )  # fmt: skip
    y_rows = o_m.to(tl.int64)
    if SHARES:
        y_rows += share.to(tl.int64) * num_rows
    store_tile(y, b_y, y_rows, n_first + o_n, num_columns, o_m < num_rows, n_first + o_n < num_columns, SWAP)


@triton.jit
def sum_kernel(parts, y, num_numbers, num_shares, BLOCK: tl.constexpr):
    """y [M * N] is the sum of the shares' products, in order."""
    o_y = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_y = o_y < num_numbers
    b_y = tl.zeros((BLOCK,), tl.float32)
    for share in range(num_shares):
        b_y += tl.load(parts + share * num_numbers + o_y, mask=m_y, other=0.0)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


@functools.cache
def _product_build(tile: Tile, *, shared: bool, aligned: bool) -> Build:
    return Build(
        kernel=product_kernel,
        types={
            "x": "*fp8e4nv", "x_scales": "*fp32", "w": "*fp8e4nv", "w_scales": "*fp32",
            "y": "*fp32" if shared else "*bf16", "x_row": "i64",
        },
        constants={"SHARES": shared, "GROUP": ROW_GROUP, **tile.constants()},
        divisible=("width", "x_row", "num_columns") if aligned else ("width", "x_row"),
        num_warps=tile.num_warps, num_stages=tile.num_stages, tensor_cores=True,
    )  # fmt: skip


@functools.cache
def _sum_build() -> Build:
    types = {"parts": "*fp32", "y": "*bf16", "num_numbers": "i64"}
    return Build(kernel=sum_kernel, types=types, constants={"BLOCK": 1024})


def configs() -> list[Build]:
    """Every tile, alone and with shares, and the sum of shares."""
    products = [_product_build(tile, shared=shared, aligned=True) for tile in TILES for shared in (False, True)]
    return [*products, _sum_build()]


def plan(num_rows: int, num_columns: int, width: int) -> tuple[Tile, int]:
    """The tile, and into how many shares of equal blocks K is cut: a function of the sizes alone."""
    tile = tile_for(TILES, num_rows)
    blocks = width // QUANT_BLOCK
    programs = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns)
    if 2 * programs > WANTED_PROGRAMS:
        return tile, 1
    shares = max(1, min(WANTED_PROGRAMS // programs, blocks // LEAST_BLOCKS))
    return tile, triton.cdiv(blocks, triton.cdiv(blocks, shares))


def float8_product(
    x_MK: torch.Tensor, x_scales_MG: torch.Tensor, w_NK: torch.Tensor, w_scales_aG: torch.Tensor
) -> torch.Tensor:
    """x times w transposed: bfloat16 [M, N], contiguous; see `reference.float8_product`.

    x_MK: float8_e4m3fn, numbers of a row side by side, rows at a stride that is a multiple of 16. w_NK: float8_e4m3fn,
    as stored. Scales: float32; row n of w has those of row n // 128. All but x contiguous. K: a multiple of 128; M and
    N: any. Sums are float32 in an order that depends on the three sizes alone, so that bits repeat from run to run.
    """
    (num_rows, width), num_columns = x_MK.shape, w_NK.shape[0]
    _check(x_MK, x_scales_MG, w_NK, w_scales_aG)
    y_MN = torch.empty((num_rows, num_columns), dtype=torch.bfloat16, device=x_MK.device)
    if not y_MN.numel():
        return y_MN
    tile, shares = plan(num_rows, num_columns, width)
    target = y_MN
    if shares > 1:
        target = torch.empty((shares, num_rows, num_columns), dtype=torch.float32, device=x_MK.device)
    build = _product_build(tile, shared=shares > 1, aligned=num_columns % 16 == 0)
    grid = (triton.cdiv(num_columns, tile.columns), triton.cdiv(num_rows, tile.rows), shares)
    build.launch(
        grid, x=x_MK, x_scales=x_scales_MG, w=w_NK, w_scales=w_scales_aG, y=target, num_rows=num_rows,
        num_columns=num_columns, width=width, x_row=x_MK.stride(0),
        blocks_per_share=triton.cdiv(width // QUANT_BLOCK, shares),
    )  # fmt: skip
    if shares > 1:
        total = _sum_build()
        sum_grid = (triton.cdiv(y_MN.numel(), total.constants["BLOCK"]),)
        total.launch(sum_grid, parts=target, y=y_MN, num_numbers=y_MN.numel(), num_shares=shares)
    return y_MN


def _check(x_MK: torch.Tensor, x_scales_MG: torch.Tensor, w_NK: torch.Tensor, w_scales_aG: torch.Tensor) -> None:
    num_rows, width = x_MK.shape
    assert width % QUANT_BLOCK == 0, f"{width} columns, must be a multiple of {QUANT_BLOCK}"
    assert w_NK.shape[1] == width, f"x has {width} columns, w has {w_NK.shape[1]}"
    assert x_MK.dtype == w_NK.dtype == torch.float8_e4m3fn, f"x is {x_MK.dtype}, w {w_NK.dtype}, must be float8_e4m3fn"
    assert x_scales_MG.dtype == w_scales_aG.dtype == torch.float32, "scales must be float32"
    assert x_scales_MG.shape == (num_rows, width // QUANT_BLOCK), f"scales of x have shape {tuple(x_scales_MG.shape)}"
    assert w_scales_aG.shape == scale_shape(*w_NK.shape), f"scales of w have shape {tuple(w_scales_aG.shape)}"
    assert x_MK.stride(1) == 1 or not x_MK.numel(), f"columns of x are {x_MK.stride(1)} apart, must be side by side"
    assert x_scales_MG.is_contiguous() and w_NK.is_contiguous() and w_scales_aG.is_contiguous(), "must be contiguous"
