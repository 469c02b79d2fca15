"""Root-mean-square norm in one launch: with rows gathered, the residual added, and the result quantised, where asked.

Legend: T tokens, S rows of the source, D width, G = D / 128 groups.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build, type_name
from kernels.quant.device import quantise_groups


@triton.jit
def rms_row(b_x, b_w, width, eps):
    """Norm of one float32 row, whose lanes past `width` are zero, times its weight."""
    return b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / width + eps) * b_w


@triton.jit
def norm_kernel(
    delta, residual, rows, weight, normed, total, codes, scales, width, eps, delta_row, residual_row,
    HAS_DELTA: tl.constexpr, HAS_ROWS: tl.constexpr, KEEP_TOTAL: tl.constexpr, QUANTISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: its row [BLOCK], of which `width` numbers are real."""
    i_t = tl.program_id(0).to(tl.int64)
    source = tl.load(rows + i_t).to(tl.int64) if HAS_ROWS else i_t
    o_d = tl.arange(0, BLOCK)
    m_d = o_d < width
    b_x = tl.load(residual + source * residual_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_DELTA:
        b_x += tl.load(delta + source * delta_row + o_d, mask=m_d, other=0.0).to(tl.float32)
    if KEEP_TOTAL:
        tl.store(total + i_t * width + o_d, b_x.to(total.dtype.element_ty), mask=m_d)
    b_y = rms_row(b_x, tl.load(weight + o_d, mask=m_d, other=0.0), width, eps).to(normed.dtype.element_ty)
    tl.store(normed + i_t * width + o_d, b_y, mask=m_d)
    if QUANTISE:
        # the lanes past the width are zero, and their groups are not stored
        b_q, b_s = quantise_groups(tl.reshape(b_y.to(tl.float32), (BLOCK // 128, 128)))
        tl.store(codes + i_t * width + o_d, tl.reshape(b_q, (BLOCK,)), mask=m_d)
        o_g = tl.arange(0, BLOCK // 128)
        tl.store(scales + i_t * (width // 128) + o_g, b_s, mask=o_g < width // 128)


@functools.cache
def _build(
    number: str, width: int, rows: str, *, delta: bool, gather: bool, keep: bool, quantise: bool, aligned: bool
) -> Build:
    pointers = dict.fromkeys(("delta", "residual", "normed", "total"), f"*{number}")
    return Build(
        kernel=norm_kernel,
        types={
            **pointers, "rows": f"*{rows}", "weight": "*fp32", "codes": "*fp8e4nv", "scales": "*fp32", "eps": "fp32",
            "delta_row": "i64", "residual_row": "i64",
        },
        constants={
            "HAS_DELTA": delta, "HAS_ROWS": gather, "KEEP_TOTAL": keep, "QUANTISE": quantise,
            "BLOCK": max(QUANT_BLOCK, triton.next_power_of_2(width)),
        },
        divisible=("width", "delta_row", "residual_row") if aligned else (),
        num_warps=8 if width > 2048 else 4,
    )  # fmt: skip


def configs() -> list[Build]:
    """Builds for rows of 7168 numbers in bfloat16: plain, with a residual, of gathered rows; quantised or not."""
    return [
        _build("bf16", 7168, "i64", delta=delta, gather=gather, keep=delta or gather, quantise=quantise, aligned=True)
        for delta, gather in ((False, False), (True, False), (False, True), (True, True))
        for quantise in (False, True)
    ]


def empty_quantised(num_rows: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for quantised rows: float8_e4m3fn [num_rows, width] and float32 scales [num_rows, width / 128]."""
    codes = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=device)
    return codes, torch.empty(num_rows, width // QUANT_BLOCK, dtype=torch.float32, device=device)


@dataclass(frozen=True, slots=True)
class Normed:
    """What a norm gives: normed and total [T, D] in the source's dtype; codes [T, D] float8_e4m3fn and scales [T, G]
    float32 of `normed`, where it was to be quantised; total where there was something to add or to gather.
    """

    normed: torch.Tensor
    total: torch.Tensor | None
    codes: torch.Tensor | None
    scales: torch.Tensor | None


def rms_norm(
    residual_SD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    *,
    delta_SD: torch.Tensor | None = None,
    rows_T: torch.Tensor | None = None,
    quantise: bool = False,
) -> Normed:
    """Norm of `residual`, of `residual + delta`, or of some rows of either; see `kernels.norm.reference`.

    residual, delta: [S, D] bfloat16 or float32, numbers of a row side by side, rows at any stride. weight: [D] float32.
    rows: [T] int64 or int32, the rows wanted in this order (with a table of embeddings as `residual`, token ids); each
    below S, which is not checked. Without it T is S. quantise needs D to be a multiple of 128; scales: powers of two.
    """
    num_rows, width = residual_SD.shape[0] if rows_T is None else rows_T.shape[0], residual_SD.shape[1]
    for x in (residual_SD, delta_SD):
        assert x is None or (x.shape[1] == width and x.stride(1) == 1 and x.dtype == residual_SD.dtype)
    assert weight_D.shape == (width,) and weight_D.dtype == torch.float32 and weight_D.is_contiguous()
    assert rows_T is None or rows_T.is_contiguous()
    assert not quantise or width % QUANT_BLOCK == 0, f"width {width} is no multiple of {QUANT_BLOCK}"
    keep = delta_SD is not None or rows_T is not None
    normed = torch.empty(num_rows, width, dtype=residual_SD.dtype, device=residual_SD.device)
    total = torch.empty(num_rows, width, dtype=residual_SD.dtype, device=residual_SD.device) if keep else None
    codes, scales = empty_quantised(num_rows, width, residual_SD.device) if quantise else (None, None)
    delta_row = 0 if delta_SD is None else delta_SD.stride(0)
    build = _build(
        type_name(residual_SD), width, "i64" if rows_T is None else type_name(rows_T),
        delta=delta_SD is not None, gather=rows_T is not None, keep=keep, quantise=quantise,
        aligned=not (width % 16 or delta_row % 16 or residual_SD.stride(0) % 16),
    )  # fmt: skip
    # what a build does not read it is not given: the residual stands in
    build.launch(
        (num_rows,),
        delta=residual_SD if delta_SD is None else delta_SD, residual=residual_SD,
        rows=residual_SD if rows_T is None else rows_T, weight=weight_D, normed=normed,
        total=normed if total is None else total, codes=normed if codes is None else codes,
        scales=normed if scales is None else scales, width=width, eps=eps,
        delta_row=delta_row, residual_row=residual_SD.stride(0),
    )  # fmt: skip
    return Normed(normed, total, codes, scales)
