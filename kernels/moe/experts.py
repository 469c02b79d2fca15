"""The experts' two products: gate and up with SwiGLU, quantised where the weights are float8, and then down.

Legend: R places by expert, P pairs, D hidden size, I inner width, E experts.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build
from kernels.moe.order import RowGroups
from kernels.quant.activations import scale_of, scaled_float8
from kernels.quant.scaled import Scaled
from kernels.quant.tiles import PLAIN, Tile, store_tile, tile_for, tile_product

MOST_EXPERTS = 256
"""Experts of one rank; every program reads the counts of all."""

_FLOAT8, _BF16, _FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
_PLAIN_TILE = Tile(rows=32, columns=32, inner=32, swap=False, num_warps=4, num_stages=2)


def _few(rows: int, inner: int, num_stages: int) -> Tile:
    """A tile for few rows: each weight is read once, and the tensor core is full."""
    return Tile(rows=rows, columns=128, inner=inner, swap=True, num_warps=8, num_stages=num_stages)


def _many(inner: int, num_warps: int) -> Tile:
    return Tile(rows=128, columns=128, inner=inner, swap=False, num_warps=num_warps, num_stages=3)


# two tiles of sums and one of float8 products fill the registers of 8 warps, not those of 16
GATE_UP_TILES = {
    _FLOAT8: (_few(16, 128, 3), _few(32, 128, 3), _few(64, 128, 3), _many(128, 16)),
    _BF16: (_few(16, 64, 3), _few(64, 64, 3), _many(64, 8)),
    _FP32: (_PLAIN_TILE,),
}
DOWN_TILES = {
    _FLOAT8: (_few(16, 128, 4), _few(32, 128, 4), _few(64, 128, 3), _many(128, 8)),
    _BF16: (_few(16, 64, 4), _few(64, 64, 3), _many(64, 8)),
    _FP32: (_PLAIN_TILE,),
}


@triton.jit
def find_rows(starts, counts, num_experts, BM: tl.constexpr, EXPERTS: tl.constexpr):
    """Of this program's tile: the expert, int64 places [BM] that are all the expert's, and which are the tile's own.

    Tiles are numbered by expert. There may be fewer than programs: then the expert is `num_experts` or more.
    """
    tile = tl.program_id(1)
    o_e = tl.arange(0, EXPERTS)
    b_tiles = tl.cdiv(tl.load(counts + o_e, mask=o_e < num_experts, other=0), BM)
    expert = tl.sum((tl.cumsum(b_tiles, 0) <= tile).to(tl.int32), 0)
    first = (tile - tl.sum(tl.where(o_e < expert, b_tiles, 0), 0)) * BM
    known = tl.minimum(expert, num_experts - 1)
    count = tl.load(counts + known)
    o_m = first + tl.arange(0, BM)
    places = tl.load(starts + known) + tl.minimum(o_m, count - 1)
    return expert, places.to(tl.int64), o_m < count


@triton.jit
def swiglu(b_gate, b_up):
    """silu(gate) * up, in float32."""
    return b_gate * tl.sigmoid(b_gate) * b_up


@triton.jit
def gate_up_kernel(
    x, x_scales, w, w_scales, h, h_scales, order, starts, counts, num_experts, copies, inner, width, x_row,
    FLOAT8: tl.constexpr, EXPERTS: tl.constexpr, SWAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program for a tile of an expert's rows and BN columns of its inner width: both products, and h of them."""
    expert, places, m_m = find_rows(starts, counts, num_experts, BM, EXPERTS)
    if expert >= num_experts:
        return
    x_rows = (tl.load(order + places) // copies).to(tl.int64)
    n_first = tl.program_id(0) * BN
    o_n = n_first + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    blocks = tl.cdiv(width, BK)
    first_row = expert.to(tl.int64) * 2 * inner + n_first  # gate rows, then up rows
    gate, up = w + first_row * width, w + (first_row + inner) * width
    gate_scales = w_scales + (expert * 2 * (inner // 128) + n_first // 128) * blocks
    up_scales = gate_scales + inner // 128 * blocks
    o_x = x_rows[:, None] * x_row + o_k[None, :]
    o_w = tl.minimum(tl.arange(0, BN), inner - 1 - n_first)[:, None] * width + o_k[None, :]
    b_gate = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    b_up = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for block in range(blocks):
        if FLOAT8:
            b_x = tl.load(x + o_x + block * BK)
            b_g = tl.load(gate + o_w + block * BK)
            b_u = tl.load(up + o_w + block * BK)
            b_s = tl.load(x_scales + x_rows * blocks + block)
            b_gs = b_s * tl.load(gate_scales + block)
            b_us = b_s * tl.load(up_scales + block)
            if SWAP:
                b_gate += tl.dot(b_g, b_x.T) * b_gs[None, :]
                b_up += tl.dot(b_u, b_x.T) * b_us[None, :]
            else:
                b_gate += tl.dot(b_x, b_g.T) * b_gs[:, None]
                b_up += tl.dot(b_x, b_u.T) * b_us[:, None]
        else:
            m_k = (block * BK + o_k < width)[None, :]
            b_x = tl.load(x + o_x + block * BK, mask=m_k, other=0.0)
            b_g = tl.load(gate + o_w + block * BK, mask=m_k, other=0.0)
            b_u = tl.load(up + o_w + block * BK, mask=m_k, other=0.0)
            if SWAP:
                b_gate = tl.dot(b_g, b_x.T, b_gate, input_precision="ieee")
                b_up = tl.dot(b_u, b_x.T, b_up, input_precision="ieee")
            else:
                b_gate = tl.dot(b_x, b_g.T, b_gate, input_precision="ieee")
                b_up = tl.dot(b_x, b_u.T, b_up, input_precision="ieee")
    # where the reference rounds: the products, and what is quantised
    NUMBER: tl.constexpr = tl.bfloat16 if FLOAT8 else h.dtype.element_ty
    b_h = swiglu(b_gate.to(NUMBER).to(tl.float32), b_up.to(NUMBER).to(tl.float32)).to(NUMBER)
    if FLOAT8:
        b_h = b_h.to(tl.float32)
        b_s = scale_of(tl.max(tl.abs(b_h), 0 if SWAP else 1), True)
        tl.store(h_scales + places * (inner // 128) + n_first // 128, b_s, mask=m_m)
        b_h = scaled_float8(b_h, b_s[None, :] if SWAP else b_s[:, None], True)
    store_tile(h, b_h, places, o_n, inner, m_m, o_n < inner, SWAP)


@triton.jit
def down_kernel(
    h, h_scales, w, w_scales, y, order, starts, counts, num_experts, num_columns, inner, y_row,
    FLOAT8: tl.constexpr, EXPERTS: tl.constexpr, SWAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program for a tile of an expert's rows and BN columns of y; a row goes to the place of its pair."""
    expert, places, m_m = find_rows(starts, counts, num_experts, BM, EXPERTS)
    if expert >= num_experts:
        return
    n_first = tl.program_id(0) * BN
    o_n = tl.arange(0, BN)
    blocks = tl.cdiv(inner, BK)
    b_y = tile_product(
        h, h_scales, w + (expert.to(tl.int64) * num_columns + n_first) * inner,
        w_scales + (expert * tl.cdiv(num_columns, 128) + n_first // 128) * blocks,
        places, tl.minimum(o_n, num_columns - 1 - n_first), 0, blocks, inner, inner, blocks,
        FLOAT8, SWAP, BM, BN, BK,
    )  # fmt: skip
    y_rows = tl.load(order + places).to(tl.int64)
    store_tile(y, b_y, y_rows, n_first + o_n, y_row, m_m, n_first + o_n < num_columns, SWAP)


_INDEX = {"order": "*i32", "starts": "*i32", "counts": "*i32"}


@functools.cache
def _gate_up_build(tile: Tile, dtype: torch.dtype, *, aligned: bool) -> Build:
    number = PLAIN.get(dtype, "fp8e4nv")
    return Build(
        kernel=gate_up_kernel,
        types={
            **dict.fromkeys(("x", "w", "h"), f"*{number}"), **_INDEX,
            **dict.fromkeys(("x_scales", "w_scales", "h_scales"), "*fp32"), "x_row": "i64",
        },
        constants={"FLOAT8": dtype not in PLAIN, "EXPERTS": MOST_EXPERTS, **tile.constants()},
        divisible=("inner", "width", "x_row") if aligned else (),
        num_warps=tile.num_warps, num_stages=tile.num_stages, tensor_cores=dtype != torch.float32,
    )  # fmt: skip


@functools.cache
def _down_build(tile: Tile, dtype: torch.dtype, *, aligned: bool) -> Build:
    number = PLAIN.get(dtype, "fp8e4nv")
    return Build(
        kernel=down_kernel,
        types={
            **dict.fromkeys(("h", "w"), f"*{number}"), **_INDEX, **dict.fromkeys(("h_scales", "w_scales"), "*fp32"),
            "y": f"*{PLAIN.get(dtype, 'bf16')}", "y_row": "i64",
        },
        constants={"FLOAT8": dtype not in PLAIN, "EXPERTS": MOST_EXPERTS, **tile.constants()},
        divisible=("num_columns", "inner", "y_row") if aligned else (),
        num_warps=tile.num_warps, num_stages=tile.num_stages, tensor_cores=dtype != torch.float32,
    )  # fmt: skip


def configs() -> list[Build]:
    """Every tile of both products, for float8, bfloat16 and float32 weights."""
    gate_up = [_gate_up_build(tile, dtype, aligned=True) for dtype, tiles in GATE_UP_TILES.items() for tile in tiles]
    down = [_down_build(tile, dtype, aligned=True) for dtype, tiles in DOWN_TILES.items() for tile in tiles]
    return [*gate_up, *down]


def expert_mlps(x_XD: Scaled, groups: RowGroups, gate_up: Scaled, down: Scaled, *, copies: int = 1) -> torch.Tensor:
    """Each expert's SwiGLU MLP on its own rows: [P, D], row p the answer for pair p; see `reference.expert_mlps`.

    x: rows [X, D]; pair p reads row p // copies, so that with `copies` pairs for each token no row is copied. groups:
    pairs by expert; P is its number of places. gate_up: [E, 2 * I, D], gate rows, then up rows; down: [E, D, I], both
    contiguous. All three float8 with scales (D and I multiples of 128; h, bfloat16 in the reference, becomes float8
    with power-of-two scales; the answer is bfloat16), or all bfloat16, or all float32. Rows of x at any stride, that of
    float8 a multiple of 16. Rows of pairs without an expert here stay unwritten. Bits repeat from run to run.
    """
    num_experts, inner, hidden = gate_up.values.shape[0], gate_up.values.shape[1] // 2, gate_up.values.shape[2]
    _check(x_XD, groups, gate_up, down)
    x, dtype = x_XD.values, gate_up.values.dtype
    h_RI = torch.empty((groups.num_places, inner), dtype=dtype, device=x.device)
    h_scales = torch.empty(0, dtype=torch.float32, device=x.device)
    if x_XD.is_float8:
        h_scales = torch.empty((groups.num_places, inner // QUANT_BLOCK), dtype=torch.float32, device=x.device)
    y_PD = torch.empty((groups.num_places, hidden), dtype=torch.bfloat16 if x_XD.is_float8 else dtype, device=x.device)
    if not groups.num_places:
        return y_PD
    lists = {"order": groups.order_P, "starts": groups.starts_E, "counts": groups.counts_E}
    aligned = not (inner % 16 or hidden % 16 or x.stride(0) % 16)
    tile = tile_for(GATE_UP_TILES[dtype], groups.usual)
    _gate_up_build(tile, dtype, aligned=aligned).launch(
        (triton.cdiv(inner, tile.columns), groups.most_tiles(tile.rows)),
        x=x, x_scales=_scales(x_XD, h_scales), w=gate_up.values, w_scales=_scales(gate_up, h_scales), h=h_RI,
        h_scales=h_scales, **lists, num_experts=num_experts, copies=copies, inner=inner, width=hidden,
        x_row=x.stride(0),
    )  # fmt: skip
    tile = tile_for(DOWN_TILES[dtype], groups.usual)
    _down_build(tile, dtype, aligned=aligned).launch(
        (triton.cdiv(hidden, tile.columns), groups.most_tiles(tile.rows)),
        h=h_RI, h_scales=h_scales, w=down.values, w_scales=_scales(down, h_scales), y=y_PD, **lists,
        num_experts=num_experts, num_columns=hidden, inner=inner, y_row=hidden,
    )  # fmt: skip
    return y_PD


def _scales(matrix: Scaled, none: torch.Tensor) -> torch.Tensor:
    return none if matrix.scales is None else matrix.scales


def _check(x_XD: Scaled, groups: RowGroups, gate_up: Scaled, down: Scaled) -> None:
    num_experts, twice, hidden = gate_up.values.shape
    dtype = gate_up.values.dtype
    assert dtype in GATE_UP_TILES, f"weights are {dtype}, must be float8_e4m3fn, bfloat16 or float32"
    assert num_experts == groups.num_experts <= MOST_EXPERTS, (
        f"weights of {num_experts} experts, rows for {groups.num_experts}, must be as many and at most {MOST_EXPERTS}"
    )
    assert down.values.shape == (num_experts, hidden, twice // 2), f"down has shape {tuple(down.values.shape)}"
    assert x_XD.values.shape[1] == hidden and x_XD.values.stride(1) == 1, f"rows must have {hidden} numbers in a row"
    assert x_XD.values.dtype == down.values.dtype == dtype, f"rows and weights must be {dtype}"
    assert gate_up.values.is_contiguous() and down.values.is_contiguous(), "weights must be contiguous"
    if dtype in PLAIN:
        return
    assert not (hidden % QUANT_BLOCK or twice // 2 % QUANT_BLOCK), (
        f"widths are {hidden} and {twice // 2}, must be multiples of {QUANT_BLOCK}"
    )
    shapes = {
        "rows": (x_XD, (x_XD.values.shape[0], hidden // QUANT_BLOCK)),
        "gate_up": (gate_up, (num_experts, twice // QUANT_BLOCK, hidden // QUANT_BLOCK)),
        "down": (down, (num_experts, hidden // QUANT_BLOCK, twice // 2 // QUANT_BLOCK)),
    }
    for name, (matrix, shape) in shapes.items():
        assert matrix.scales is not None and matrix.scales.shape == shape, f"scales of {name} must have shape {shape}"
        assert matrix.scales.dtype == torch.float32 and matrix.scales.is_contiguous(), (
            f"scales of {name} must be float32 and contiguous"
        )
