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
def combine_kernel(y, weights, beside, out, width, y_row, beside_row, slots, BESIDE: tl.constexpr, BLOCK: tl.constexpr):
    """One program for a token and BLOCK columns: products and sums in float32, in the order of the slots."""
    token = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < width
    b_y = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        pair = token * slots + slot
        weight = tl.load(weights + pair)
        m_y = tl.where(m_d, weight, 0.0) != 0.0
        b_y += weight * tl.load(y + pair * y_row + o_d, mask=m_y, other=0.0).to(tl.float32)
    if BESIDE:
        b_y += tl.load(beside + token * beside_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    tl.store(out + token * width + o_d, b_y.to(out.dtype.element_ty), mask=m_d)


@functools.cache
def _build(y: str, out: str, *, beside: bool, aligned: bool) -> Build:
    return Build(
        kernel=combine_kernel,
        types={
            "y": f"*{y}", "weights": "*fp32", "beside": f"*{y}", "out": f"*{out}", "y_row": "i64", "beside_row": "i64",
        },
        constants={"BESIDE": beside, "BLOCK": 1024},
        divisible=("width", "y_row", "beside_row") if aligned else (),
        fusion=False,  # the bits of the reference: a product is rounded before it is added
    )  # fmt: skip


def configs() -> list[Build]:
    """Answers in bfloat16 and float32, with and without rows beside them."""
    kinds = (("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32"))
    return [_build(y, out, beside=beside, aligned=True) for y, out in kinds for beside in (True, False)]


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
    width = y_PD.shape[1]
    assert y_PD.shape[0] == num_tokens * slots, f"{y_PD.shape[0]} rows for {num_tokens} tokens, must be {slots} each"
    assert y_PD.dtype in PLAIN and dtype in (y_PD.dtype, torch.float32), (
        f"{y_PD.dtype} to {dtype}: must be y's or float32"
    )
    assert weights_TK.dtype == torch.float32 and weights_TK.is_contiguous(), "weights must be float32, contiguous"
    rows = y_PD if beside_TD is None else beside_TD  # what is not read stands for nothing
    assert beside_TD is None or beside_TD.shape == (num_tokens, width), f"beside must be [{num_tokens}, {width}]"
    assert rows.dtype == y_PD.dtype and y_PD.stride(1) == rows.stride(1) == 1, "rows must be of one dtype, and whole"
    out_TD = torch.empty((num_tokens, width), dtype=dtype, device=y_PD.device)
    aligned = not (width % 16 or y_PD.stride(0) % 16 or rows.stride(0) % 16)
    build = _build(PLAIN[y_PD.dtype], PLAIN[dtype], beside=beside_TD is not None, aligned=aligned)
    build.launch(
        (num_tokens, triton.cdiv(width, build.constants["BLOCK"])),
        y=y_PD, weights=weights_TK, beside=rows, out=out_TD, width=width, y_row=y_PD.stride(0),
        beside_row=rows.stride(0), slots=slots,
    )  # fmt: skip
    return out_TD
