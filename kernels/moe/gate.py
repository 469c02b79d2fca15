"""The gate: scores in float32 whatever the batch, then groups and experts by biased scores.

Legend: T tokens, D hidden size, E experts, K experts per token, G groups.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.quant.tiles import PLAIN, Tile, store_tile, tile_for, tile_product

TILES = {
    torch.bfloat16: (
        Tile(rows=16, columns=64, inner=64, swap=True, num_warps=4, num_stages=4),
        Tile(rows=64, columns=64, inner=64, swap=True, num_warps=4, num_stages=4),
    ),
    torch.float32: (Tile(rows=32, columns=32, inner=32, swap=False, num_warps=4, num_stages=2),),
}
SHARE = 512
"""Columns that one program sums. The same for every batch, so that a token's scores do not depend on the others."""
TOKENS = 4
LOWEST = tl.constexpr(-1.0e38)
"""Stands for a biased score that is no number: below all that are, above what is out of the choice."""


@triton.jit
def scores_kernel(
    x, w, parts, num_tokens, num_experts, width, x_row, blocks_per_share,
    SWAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program for a tile and one share of the columns: parts [shares, T, E] float32."""
    n_first = tl.program_id(0) * BN
    o_n = tl.arange(0, BN)
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    share = tl.program_id(2)
    first = share * blocks_per_share
    b_y = tile_product(
        x, x, w + n_first.to(tl.int64) * width, w,
        tl.minimum(o_m, num_tokens - 1).to(tl.int64), tl.minimum(o_n, num_experts - 1 - n_first),
        first, tl.minimum(first + blocks_per_share, tl.cdiv(width, BK)), width, x_row, 0,
        False, SWAP, BM, BN, BK,
    )  # fmt: skip
    y_rows = share.to(tl.int64) * num_tokens + o_m
    store_tile(parts, b_y, y_rows, n_first + o_n, num_experts, o_m < num_tokens, n_first + o_n < num_experts, SWAP)


@triton.jit
def choose_kernel(
    parts, bias, ids, weights, num_tokens, num_shares, num_experts, scaling,
    EXPERTS: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, CHOSEN: tl.constexpr, NORMALISE: tl.constexpr,
    BG: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One program for BT tokens. EXPERTS, BG, BK: experts, groups and K, rounded up to powers of two."""
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    o_e = tl.arange(0, EXPERTS)[None, :]
    m_e = o_e < num_experts
    p_x = parts + o_t.to(tl.int64)[:, None] * num_experts + o_e
    b_x = tl.zeros((BT, EXPERTS), tl.float32)
    for _ in range(num_shares):
        b_x += tl.load(p_x, mask=(o_t < num_tokens)[:, None] & m_e, other=0.0)
        p_x += num_tokens * num_experts
    b_s = tl.sigmoid(b_x)
    b_b = b_s + tl.load(bias + o_e, mask=m_e, other=0.0)
    b_b = tl.where(m_e, tl.where(b_b > LOWEST, b_b, LOWEST), -float("inf"))
    if KEPT < GROUPS:
        b_b = drop_groups(b_b, o_e, num_experts // GROUPS, GROUPS, KEPT, EXPERTS, BG, BT)
    o_k = tl.arange(0, BK)[None, :]
    b_ids = tl.zeros((BT, BK), tl.int64)
    b_w = tl.zeros((BT, BK), tl.float32)
    total = tl.zeros((BT,), tl.float32)
    for k in range(CHOSEN):
        b_best = tl.max(b_b, 1)
        b_id = tl.min(tl.where(b_b == b_best[:, None], o_e, EXPERTS), 1)  # of equals the lower
        b_one = tl.sum(tl.where(o_e == b_id[:, None], b_s, 0.0), 1)
        b_ids = tl.where(o_k == k, b_id.to(tl.int64)[:, None], b_ids)
        b_w = tl.where(o_k == k, b_one[:, None], b_w)
        total += b_one
        b_b = tl.where(o_e == b_id[:, None], -float("inf"), b_b)
    if NORMALISE:
        b_w = b_w / total[:, None]
    p_k = o_t.to(tl.int64)[:, None] * CHOSEN + o_k
    m_k = (o_t < num_tokens)[:, None] & (o_k < CHOSEN)
    tl.store(ids + p_k, b_ids, mask=m_k)
    tl.store(weights + p_k, b_w * scaling, mask=m_k)


@triton.jit
def drop_groups(
    b_b, o_e, size, GROUPS: tl.constexpr, KEPT: tl.constexpr, EXPERTS: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr
):
    """Biased scores [BT, EXPERTS] with minus infinity in all but the KEPT groups whose two best sum up highest."""
    o_g = tl.arange(0, BG)[None, :]
    b_strength = tl.full((BT, BG), -float("inf"), tl.float32)
    for g in range(GROUPS):
        b_mine = tl.where(o_e // size == g, b_b, -float("inf"))
        b_best = tl.max(b_mine, 1)
        b_id = tl.min(tl.where(b_mine == b_best[:, None], o_e, EXPERTS), 1)
        b_second = tl.max(tl.where(o_e == b_id[:, None], -float("inf"), b_mine), 1)
        b_strength = tl.where(o_g == g, (b_best + b_second)[:, None], b_strength)
    b_other, o_other = b_strength[:, None, :], tl.arange(0, BG)[None, None, :]
    b_self, o_self = b_strength[:, :, None], tl.arange(0, BG)[None, :, None]
    b_beaten = (b_other > b_self) | ((b_other == b_self) & (o_other < o_self))
    b_rank = tl.sum(b_beaten.to(tl.int32), 2)
    for g in range(GROUPS):
        b_dropped = tl.sum(tl.where(o_g == g, b_rank, 0), 1) >= KEPT
        b_b = tl.where((o_e // size == g) & b_dropped[:, None], -float("inf"), b_b)
    return b_b


@functools.cache
def _scores_build(tile: Tile, x: str, w: str, *, aligned: bool) -> Build:
    return Build(
        kernel=scores_kernel,
        types={"x": f"*{x}", "w": f"*{w}", "parts": "*fp32", "x_row": "i64"},
        constants=tile.constants(),
        divisible=("num_experts", "width", "x_row") if aligned else (),
        num_warps=tile.num_warps, num_stages=tile.num_stages, tensor_cores=x == "bf16",
    )  # fmt: skip


@functools.cache
def _choose_build(num_experts: int, groups: int, kept: int, chosen: int, *, normalise: bool) -> Build:
    return Build(
        kernel=choose_kernel,
        types={"parts": "*fp32", "bias": "*fp32", "ids": "*i64", "weights": "*fp32", "scaling": "fp32"},
        constants={
            "EXPERTS": triton.next_power_of_2(num_experts), "GROUPS": groups, "KEPT": kept, "CHOSEN": chosen,
            "NORMALISE": normalise, "BG": triton.next_power_of_2(groups), "BK": triton.next_power_of_2(chosen),
            "BT": TOKENS,
        },
    )  # fmt: skip


def configs() -> list[Build]:
    """Every tile of the scores, and the choice of the 671B model, also without groups."""
    kinds = ((torch.bfloat16, "bf16"), (torch.bfloat16, "fp32"), (torch.float32, "fp32"))
    scores = [_scores_build(tile, PLAIN[x], w, aligned=True) for x, w in kinds for tile in TILES[x]]
    return [*scores, *(_choose_build(256, groups, kept, 8, normalise=True) for groups, kept in ((8, 4), (1, 1)))]


def gate(
    x_TD: torch.Tensor,
    weight_ED: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    experts_per_token: int,
    num_groups: int,
    topk_groups: int,
    normalise: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts: (ids [T, K] int64, weights [T, K] float32), best first; see `reference.gate`.

    x: bfloat16 or float32, numbers of a row side by side, rows at any stride. weight: contiguous, float32, or bfloat16
    beside a bfloat16 x, which is faster and as exact: no product is rounded before the sum, which is float32. bias:
    float32. A token's choice does not depend on the other tokens. A score that is no number is chosen last.
    """
    (num_tokens, width), num_experts = x_TD.shape, weight_ED.shape[0]
    assert x_TD.dtype in PLAIN and x_TD.stride(1) == 1, f"x is {x_TD.dtype}, must be bfloat16 or float32, rows whole"
    assert weight_ED.dtype in (x_TD.dtype, torch.float32), f"weight is {weight_ED.dtype}, must be x's or float32"
    assert weight_ED.shape == (num_experts, width) and weight_ED.is_contiguous(), "weight must be [E, D], contiguous"
    assert bias_E.shape == (num_experts,) and bias_E.dtype == torch.float32, "bias must be [E] float32"
    assert num_experts % num_groups == 0, f"{num_groups} groups of {num_experts} experts, must divide them"
    kept = num_experts // num_groups * topk_groups
    assert experts_per_token <= kept, f"{experts_per_token} experts a token, must be at most {kept}"
    device = x_TD.device
    shares = triton.cdiv(width, SHARE)
    parts = torch.empty((shares, num_tokens, num_experts), dtype=torch.float32, device=device)
    tile = tile_for(TILES[x_TD.dtype], num_tokens)
    aligned = not (num_experts % 16 or width % 16 or x_TD.stride(0) % 16)
    _scores_build(tile, PLAIN[x_TD.dtype], PLAIN[weight_ED.dtype], aligned=aligned).launch(
        (triton.cdiv(num_experts, tile.columns), triton.cdiv(num_tokens, tile.rows), shares),
        x=x_TD, w=weight_ED, parts=parts, num_tokens=num_tokens, num_experts=num_experts, width=width,
        x_row=x_TD.stride(0), blocks_per_share=SHARE // tile.inner,
    )  # fmt: skip
    ids_TK = torch.empty((num_tokens, experts_per_token), dtype=torch.int64, device=device)
    weights_TK = torch.empty((num_tokens, experts_per_token), dtype=torch.float32, device=device)
    _choose_build(num_experts, num_groups, topk_groups, experts_per_token, normalise=normalise).launch(
        (triton.cdiv(num_tokens, TOKENS),), parts=parts, bias=bias_E, ids=ids_TK, weights=weights_TK,
        num_tokens=num_tokens, num_shares=shares, num_experts=num_experts, scaling=scaling,
    )  # fmt: skip
    return ids_TK, weights_TK
