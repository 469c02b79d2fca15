"""Rows on their way to the ranks of their experts: as bytes, once for each rank, at a fixed place each.

A record is the row's numbers, then its float32 scales if it has any, K int32 ids and K float32 weights, padded to 16
bytes. It has the same place for every rank, that of its token, so that shapes depend on no routing: a CUDA graph can
hold the exchange, and no rank waits to learn counts. Bytes, because not every backend takes float8.

Legend: T tokens, D hidden size, K experts per token, G = D / 128, W ranks, R = W * T records that arrive, B bytes.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build
from kernels.moe.record import RecordLayout
from kernels.quant.scaled import Scaled


@triton.jit
def pack_kernel(
    x, x_scales, ids, weights, out, out_weights, share, num_tokens, row_words, scale_words, slots, x_row, record,
    BK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for a token and a rank. All but the weights is int32 words; `record` and `x_row` count words."""
    token = tl.program_id(0).to(tl.int64)
    rank = tl.program_id(1)
    place = (rank.to(tl.int64) * num_tokens + token) * record
    o_k = tl.arange(0, BK)
    m_k = o_k < slots
    b_id = tl.load(ids + token * slots + o_k, mask=m_k, other=-1)
    m_here = m_k & (b_id >= rank * share) & (b_id < (rank + 1) * share)
    b_weight = tl.load(weights + token * slots + o_k, mask=m_here, other=0.0)
    at = place + row_words + scale_words
    tl.store(out + at + o_k, tl.where(m_here, b_id, -1).to(tl.int32), mask=m_k)
    tl.store(out_weights + at + slots + o_k, b_weight, mask=m_k)
    if tl.sum(m_here.to(tl.int32), 0) > 0:
        for first in range(0, row_words, BLOCK):
            o_d = first + tl.arange(0, BLOCK)
            b_x = tl.load(x + token * x_row + o_d, mask=o_d < row_words, other=0)
            tl.store(out + place + o_d, b_x, mask=o_d < row_words)
        for first in range(0, scale_words, BLOCK):
            o_g = first + tl.arange(0, BLOCK)
            b_s = tl.load(x_scales + token * scale_words + o_g, mask=o_g < scale_words, other=0)
            tl.store(out + place + row_words + o_g, b_s, mask=o_g < scale_words)


@triton.jit
def unpack_kernel(
    records, record_weights, scales, ids, weights, row_words, scale_words, slots, record,
    BK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for a record: its scales, ids and weights, each to where it lies side by side with the others'."""
    row = tl.program_id(0).to(tl.int64)
    at = row * record + row_words
    for first in range(0, scale_words, BLOCK):
        o_g = first + tl.arange(0, BLOCK)
        b_s = tl.load(records + at + o_g, mask=o_g < scale_words, other=0)
        tl.store(scales + row * scale_words + o_g, b_s, mask=o_g < scale_words)
    o_k = tl.arange(0, BK)
    m_k = o_k < slots
    b_id = tl.load(records + at + scale_words + o_k, mask=m_k, other=-1)
    tl.store(ids + row * slots + o_k, b_id, mask=m_k)
    b_weight = tl.load(record_weights + at + scale_words + slots + o_k, mask=m_k, other=0.0)
    tl.store(weights + row * slots + o_k, b_weight, mask=m_k)


@functools.cache
def _pack_build(slots: int) -> Build:
    return Build(
        kernel=pack_kernel,
        types={
            **dict.fromkeys(("x", "x_scales", "out"), "*i32"), "ids": "*i64",
            **dict.fromkeys(("weights", "out_weights"), "*fp32"), "x_row": "i64",
        },
        constants={"BK": triton.next_power_of_2(slots), "BLOCK": 1024},
    )  # fmt: skip


@functools.cache
def _unpack_build(slots: int) -> Build:
    return Build(
        kernel=unpack_kernel,
        types=dict.fromkeys(("records", "scales", "ids"), "*i32")
        | dict.fromkeys(("record_weights", "weights"), "*fp32"),
        constants={"BK": triton.next_power_of_2(slots), "BLOCK": 64},
        num_warps=2,
    )


def configs() -> list[Build]:
    """Both ways, for the 8 experts of a token of the model."""
    return [_pack_build(8), _unpack_build(8)]


def pack_for_ranks(
    rows_TD: Scaled, ids_TK: torch.Tensor, weights_TK: torch.Tensor, *, num_experts: int, num_ranks: int
) -> torch.Tensor:
    """Records for every rank: uint8 [W, T, B]; what is for rank w is [w]. See `pack_reference.pack_for_ranks`.

    rows: float8 with contiguous scales, or bfloat16; numbers of a row side by side, a row a multiple of 4 bytes after
    the one before. ids: [T, K] int64, global, contiguous, -1 for none; every rank has E / W experts in a row. weights:
    [T, K] float32, contiguous. In a record the ids of other ranks are -1 and their weights 0; where all are, the rest
    of the record is not written.
    """
    num_tokens, slots = rows_TD.values.shape[0], ids_TK.shape[1]
    layout = _layout(rows_TD, slots)
    assert num_experts % num_ranks == 0, f"{num_experts} experts on {num_ranks} ranks, must be as many on each"
    assert ids_TK.shape == weights_TK.shape == (num_tokens, slots), f"ids and weights must be [{num_tokens}, {slots}]"
    assert ids_TK.dtype == torch.int64 and weights_TK.dtype == torch.float32, "ids must be int64, weights float32"
    assert ids_TK.is_contiguous() and weights_TK.is_contiguous(), "ids and weights must be contiguous"
    size = rows_TD.values.element_size()
    row_bytes = rows_TD.values.stride(0) * size
    assert rows_TD.values.stride(1) == 1 and row_bytes % 4 == 0, (
        f"rows are {row_bytes} bytes apart, must be whole words"
    )
    records = torch.empty((num_ranks, num_tokens, layout.num_bytes), dtype=torch.uint8, device=ids_TK.device)
    if not records.numel():
        return records
    words = _words(rows_TD.values)
    flat = records.view(-1)
    _pack_build(slots).launch(
        (num_tokens, num_ranks),
        x=words, x_scales=words if rows_TD.scales is None else rows_TD.scales.view(torch.int32), ids=ids_TK,
        weights=weights_TK, out=flat.view(torch.int32), out_weights=flat.view(torch.float32),
        share=num_experts // num_ranks, num_tokens=num_tokens, row_words=layout.scales_at // 4,
        scale_words=(layout.ids_at - layout.scales_at) // 4, slots=slots, x_row=row_bytes // 4,
        record=layout.num_bytes // 4,
    )  # fmt: skip
    return records


def unpack_rows(records_RB: torch.Tensor, layout: RecordLayout) -> tuple[Scaled, torch.Tensor, torch.Tensor]:
    """Records that arrived, uint8 [R, B] contiguous: (rows [R, D], ids [R, K] int32, weights [R, K] float32).

    The rows' numbers are a view of the records, at a stride of B bytes; scales, ids and weights are new and contiguous.
    Where a record has no id, its row holds anything. See `pack_reference.unpack_rows`.
    """
    assert records_RB.dtype == torch.uint8 and records_RB.is_contiguous(), "records must be uint8 and contiguous"
    assert records_RB.shape[1] == layout.num_bytes, (
        f"records of {records_RB.shape[1]} bytes, must be {layout.num_bytes}"
    )
    num_rows, device = records_RB.shape[0], records_RB.device
    values = records_RB[:, : layout.scales_at].view(torch.float8_e4m3fn if layout.float8 else torch.bfloat16)
    scale_words = (layout.ids_at - layout.scales_at) // 4
    scales = torch.empty((num_rows, scale_words), dtype=torch.float32, device=device)
    ids = torch.empty((num_rows, layout.slots), dtype=torch.int32, device=device)
    weights = torch.empty((num_rows, layout.slots), dtype=torch.float32, device=device)
    if num_rows:
        flat = records_RB.view(-1)
        _unpack_build(layout.slots).launch(
            (num_rows,), records=flat.view(torch.int32), record_weights=flat.view(torch.float32),
            scales=scales.view(torch.int32), ids=ids, weights=weights, row_words=layout.scales_at // 4,
            scale_words=scale_words, slots=layout.slots, record=layout.num_bytes // 4,
        )  # fmt: skip
    return Scaled(values, scales if layout.float8 else None), ids, weights


def _layout(rows_TD: Scaled, slots: int) -> RecordLayout:
    num_rows, hidden = rows_TD.values.shape
    if rows_TD.scales is None:
        assert rows_TD.values.dtype == torch.bfloat16, (
            f"rows are {rows_TD.values.dtype}, must be bfloat16 or have scales"
        )
        assert hidden % 2 == 0, f"rows of {hidden} numbers, must be an even number"
        return RecordLayout(hidden, slots, float8=False)
    assert rows_TD.values.dtype == torch.float8_e4m3fn, f"rows are {rows_TD.values.dtype}, must be float8_e4m3fn"
    shape = (num_rows, hidden // QUANT_BLOCK)
    assert hidden % QUANT_BLOCK == 0, f"rows of {hidden} numbers, must be a multiple of {QUANT_BLOCK}"
    assert rows_TD.scales.shape == shape and rows_TD.scales.dtype == torch.float32, f"scales must be {shape} float32"
    assert rows_TD.scales.is_contiguous(), "scales must be contiguous"
    return RecordLayout(hidden, slots, float8=True)


def _words(values: torch.Tensor) -> torch.Tensor:
    """The same memory as int32, of a tensor whose rows lie apart: only where it begins matters to the kernel."""
    per_word = 4 // values.element_size()
    return values.as_strided((values.shape[1] // per_word * per_word,), (1,)).view(torch.int32)
