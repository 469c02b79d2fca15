"""Brings the answers of a token's experts together.

Legend: T tokens, K experts per token, P = T * K pairs, D hidden size.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.quant.tiles import PLAIN


@triton.jit
def combine_kernel(
    y, weights, beside, out, width, y_token, y_slot, beside_row, slots,
    WEIGHTED: tl.constexpr, BESIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for a token and BLOCK columns: products and sums in float32, in the order of the slots."""
    token = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < width
    p_y = y + token * y_token + o_d
    b_y = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        if WEIGHTED:
            weight = tl.load(weights + token * slots + slot)
            m_y = tl.where(m_d, weight, 0.0) != 0.0
            b_y += weight * tl.load(p_y, mask=m_y, other=0.0).to(tl.float32)
        else:
            b_y += tl.load(p_y, mask=m_d, other=0.0).to(tl.float32)
        p_y += y_slot
    if BESIDE:
        b_y += tl.load(beside + token * beside_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(out + token * width + o_d, b_y.to(out.dtype.element_ty), mask=m_d)


@functools.cache
def _build(y: str, out: str, *, weighted: bool, beside: bool, aligned: bool) -> Build:
    return Build(
        kernel=combine_kernel,
        types={
            "y": f"*{y}", "weights": "*fp32", "beside": f"*{y}", "out": f"*{out}", "y_token": "i64", "y_slot": "i64",
            "beside_row": "i64",
        },
        constants={"WEIGHTED": weighted, "BESIDE": beside, "BLOCK": 1024},
        divisible=("width", "y_token", "y_slot", "beside_row") if aligned else (),
        fusion=False,  # the bits of the reference: a product is rounded before it is added
    )  # fmt: skip


def configs() -> list[Build]:
    """Answers in bfloat16 and float32, weighted or not, with and without rows beside them."""
    kinds = (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32"))
    both = (True, False)
    return [
        _build(y, out, weighted=weighted, beside=beside, aligned=True)
        for y, out in kinds
        for weighted in both
        for beside in both
    ]


def combine_pairs(
    y_PD: torch.Tensor,
    weights_TK: torch.Tensor,
    *,
    beside_TD: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """[T, D] in `dtype`: sum over k of weights[t, k] * y[t * K + k], then `beside`; see `reference.combine_pairs`.

    y: [T * K, D] bfloat16 or float32. weights: float32, contiguous; where one is 0, y is not read. beside: rows that
    count once, unscaled (the shared expert), in y's dtype. Numbers of a row of y and beside lie side by side, rows at
    any stride. dtype: y's or float32. The sum is float32, in the order of k, and rounded once.
    """
    num_tokens, slots = weights_TK.shape
    assert y_PD.shape[0] == num_tokens * slots, f"{y_PD.shape[0]} rows for {num_tokens} tokens, must be {slots} each"
    assert weights_TK.dtype == torch.float32 and weights_TK.is_contiguous(), "weights must be float32, contiguous"
    y_TKD = y_PD.unflatten(0, (num_tokens, slots))
    return _combine(y_TKD, weights_TK, beside_TD, dtype)


def sum_parts(
    parts_WTD: torch.Tensor, *, beside_TD: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """[T, D] in `dtype`: the sum over w of parts[w, t], then `beside`; see `reference.sum_parts`.

    parts: [W, T, D] bfloat16 or float32, what W ranks gave for each token; otherwise as `combine_pairs`.
    """
    return _combine(parts_WTD.transpose(0, 1), None, beside_TD, dtype)


def _combine(
    y_TKD: torch.Tensor, weights_TK: torch.Tensor | None, beside_TD: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    num_tokens, slots, width = y_TKD.shape
    y = y_TKD.dtype
    assert y in PLAIN and dtype in (y, torch.float32), (
        f"{y} to {dtype}, must be bfloat16 or float32, to its own or float32"
    )
    # what a build does not read it is not given: others stand in
    rows = y_TKD[:, 0] if beside_TD is None else beside_TD
    assert rows.shape == (num_tokens, width), f"beside is {tuple(rows.shape)}, must be {(num_tokens, width)}"
    assert rows.dtype == y, f"beside is {rows.dtype}, must be {y}"
    assert y_TKD.stride(2) == rows.stride(1) == 1, "numbers of a row must lie side by side"
    out_TD = torch.empty((num_tokens, width), dtype=dtype, device=y_TKD.device)
    strides = {"y_token": y_TKD.stride(0), "y_slot": y_TKD.stride(1), "beside_row": rows.stride(0)}
    aligned = not any(number % 16 for number in (width, *strides.values()))
    weighted, beside = weights_TK is not None, beside_TD is not None
    build = _build(PLAIN[y], PLAIN[dtype], weighted=weighted, beside=beside, aligned=aligned)
    build.launch(
        (num_tokens, triton.cdiv(width, build.constants["BLOCK"])), y=y_TKD,
        weights=out_TD if weights_TK is None else weights_TK, beside=rows, out=out_TD, width=width, slots=slots,
        **strides,
    )  # fmt: skip
    return out_TD
