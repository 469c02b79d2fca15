"""Latent attention over selected records (sparse), or over all records of a sequence (dense, for short contexts).

    out[r, h] = sum over records j of softmax_j(scale * <q[r, h], record_j>) * (the first 512 numbers of record_j)

The records of a row may be split over programs, so that a small batch fills the GPU; a second launch combines them.

Legend: R rows (queries), H heads, Q = 512 + 64 query width, C = 512 latent width, K selected records, B sequences,
P pages of a table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton

from kernels.arguments import check_tensor
from kernels.builds import Build
from kernels.cache.layout import PAGE_TOKENS, latent_record_bytes
from kernels.dsa.attend_kernel import attend_rows, combine_splits

LATENT_DIM, ROPE_DIM = 512, 64
QUERY_DIM = LATENT_DIM + ROPE_DIM
RECORD_BYTES = latent_record_bytes(LATENT_DIM, ROPE_DIM)
MOST_SELECTED = 2048
MOST_SPLITS = 32
LEAST_SPLIT = 64
MULTIPROCESSORS = 132  # of an H200; splits are chosen by it and by shapes alone, never by data
WIDE_HEADS = 128


def choose_splits(num_rows: int, num_heads: int, width: int) -> int:
    """How many programs share the records of a row: 1 to 32, a power of two, so many that all multiprocessors work."""
    programs = 2 * max(1, num_rows) * triton.cdiv(num_heads, WIDE_HEADS)
    wanted: int = min(MULTIPROCESSORS // programs, width // LEAST_SPLIT, MOST_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)


@functools.cache
def _build(*, wide: bool, float8: bool, paged: bool, partial: bool) -> Build:
    """wide: 128 heads a program, else 16. float8: packed records. paged: all records of a sequence."""
    return Build(
        kernel=attend_rows,
        types={
            "q": "*bf16",
            "records": "*bf16",
            "codes": "*fp8e4nv",
            "scales": "*fp32",
            "slots": "*i32",
            "table": "*i32",
            "sequences": "*i32",
            "lengths": "*i32",
            "out": "*fp32" if partial else "*bf16",
            "lse": "*fp32",
            "scale_log2": "fp32",
        },
        constants={
            "BLOCK_H": WIDE_HEADS if wide else 16,
            "BLOCK_N": 32,
            "MOST": MOST_SELECTED,
            "HALVES": 2 if wide else 1,
            "FLOAT8": float8,
            "PAGED": paged,
            "PARTIAL": partial,
            "PAGE": PAGE_TOKENS,
            "STAGES": 2,
        },
        divisible=("stride_q_row", "stride_q_head", "stride_record"),
        num_warps=8 if wide else 4,
        num_stages=2,
        tensor_cores=wide,
    )


@functools.cache
def _combine_build() -> Build:
    return Build(
        kernel=combine_splits,
        types={"partial": "*fp32", "partial_lse": "*fp32", "out": "*bf16", "lse": "*fp32"},
        constants={"MOST_SPLITS": MOST_SPLITS, "LATENT": LATENT_DIM},
        num_stages=2,
    )


def configs() -> Iterator[Build]:
    """Every build that the launchers here can choose."""
    for float8 in (False, True):
        for paged in (False, True):
            yield _build(wide=True, float8=float8, paged=paged, partial=False)
            yield _build(wide=True, float8=float8, paged=paged, partial=True)
            yield _build(wide=False, float8=float8, paged=paged, partial=True)
    yield _combine_build()


def attend_selected(
    q_RHQ: torch.Tensor,
    records: torch.Tensor,
    slots_RK: torch.Tensor,
    scale: float,
    *,
    lengths_R: torch.Tensor | None = None,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row over the records at its slots: (out [R, H, 512] bfloat16, lse [R, H] float32).

    q: [R, H, 576] bfloat16, last dimension contiguous. records: [slots, 576] bfloat16, or [slots, 656] uint8 packed as
    in kernels.cache.layout, contiguous. slots: [R, K] int32, any stride by row, K up to 2048; a slot that is negative
    or past the cache is left out, wherever it stands, and no record that is left out is read. lengths: [R] int32, only
    the first lengths[r] of a row count (None: all).

    lse is the natural logarithm of the sum of exp(scale * <q, record>). A row without records gives zeros, and an lse
    of plus infinity. splits: 1 to 32 programs for a row (None: by `choose_splits`); the sums of float32 are taken in
    the order that they give, so another number gives other last bits.

    Raises ValueError for another shape, dtype or layout.
    """
    rows, width = slots_RK.shape
    if width > MOST_SELECTED:
        raise ValueError(f"attention takes up to {MOST_SELECTED} slots a row, not {width}")
    check_tensor(slots_RK, "slots", (rows, width), torch.int32, row_stride=True)
    if lengths_R is None:
        lengths_R = torch.full((rows,), width, dtype=torch.int32, device=slots_RK.device)
    source: dict[str, Any] = {"slots": slots_RK, "stride_slots": slots_RK.stride(0)}
    source |= {"table": lengths_R, "sequences": lengths_R, "stride_table": 0}
    return _attend(q_RHQ, records, lengths_R, width, scale, splits, source, paged=False)


def attend_paged(
    q_RHQ: torch.Tensor,
    records: torch.Tensor,
    block_table_BP: torch.Tensor,
    sequences_R: torch.Tensor,
    lengths_R: torch.Tensor,
    scale: float,
    *,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row over the first lengths[r] records of its sequence; needs no top-k: for short contexts.

    block_table: [B, P] int32, any stride by row. sequences: [R] int32, each row's row of it. lengths: [R] int32, at
    most 64 * P. The rest as for `attend_selected`.

    Raises ValueError for another shape, dtype or layout.
    """
    rows = q_RHQ.shape[0]
    check_tensor(block_table_BP, "block_table", tuple(block_table_BP.shape), torch.int32, row_stride=True)
    check_tensor(sequences_R, "sequences", (rows,), torch.int32)
    source: dict[str, Any] = {"slots": lengths_R, "stride_slots": 0}
    source |= {"table": block_table_BP, "sequences": sequences_R, "stride_table": block_table_BP.stride(0)}
    width = block_table_BP.shape[1] * PAGE_TOKENS
    return _attend(q_RHQ, records, lengths_R, width, scale, splits, source, paged=True)


def _attend(
    q_RHQ: torch.Tensor,
    records: torch.Tensor,
    lengths_R: torch.Tensor,
    width: int,
    scale: float,
    splits: int | None,
    source: dict[str, Any],
    *,
    paged: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, query_dim = q_RHQ.shape
    if query_dim != QUERY_DIM or q_RHQ.dtype != torch.bfloat16 or q_RHQ.stride(2) != 1:
        raise ValueError(
            f"q is {tuple(q_RHQ.shape)} {q_RHQ.dtype} with strides {q_RHQ.stride()}, expected [R, H, {QUERY_DIM}] "
            "bfloat16 with a contiguous last dimension"
        )
    float8 = records.dtype == torch.uint8
    record = (records.shape[0], RECORD_BYTES if float8 else QUERY_DIM)
    check_tensor(records, "records", record, torch.uint8 if float8 else torch.bfloat16)
    check_tensor(lengths_R, "lengths", (rows,), torch.int32)
    if splits is None:
        splits = choose_splits(rows, heads, width)
    if not 1 <= splits <= MOST_SPLITS:
        raise ValueError(f"records of a row are split 1 to {MOST_SPLITS} ways, not {splits}")
    wide = heads % WIDE_HEADS == 0
    partial = splits > 1 or not wide
    build = _build(wide=wide, float8=float8, paged=paged, partial=partial)
    out_RHC = torch.empty(rows, heads, LATENT_DIM, dtype=torch.bfloat16, device=q_RHQ.device)
    lse_RH = torch.empty(rows, heads, dtype=torch.float32, device=q_RHQ.device)
    part, part_lse = out_RHC, lse_RH
    if partial:
        part = torch.empty(splits, rows, heads, LATENT_DIM, dtype=torch.float32, device=q_RHQ.device)
        part_lse = torch.empty(splits, rows, heads, dtype=torch.float32, device=q_RHQ.device)
    blocks = triton.cdiv(heads, build.constants["BLOCK_H"])
    tile = build.constants["BLOCK_N"]
    build.launch(
        (rows * blocks * build.constants["HALVES"], splits),
        q=q_RHQ,
        records=records.view(torch.bfloat16),
        codes=records.view(torch.float8_e4m3fn),
        scales=records.view(torch.float32),
        lengths=lengths_R,
        out=part,
        lse=part_lse,
        scale_log2=scale * math.log2(math.e),
        num_rows=rows,
        num_heads=heads,
        num_slots=records.shape[0],
        width=width,
        split_width=triton.cdiv(triton.cdiv(width, splits), tile) * tile,
        stride_q_row=q_RHQ.stride(0),
        stride_q_head=q_RHQ.stride(1),
        stride_record=records.stride(0),
        **source,
    )
    if partial:
        _combine_build().launch(
            (rows * heads,),
            partial=part,
            partial_lse=part_lse,
            out=out_RHC,
            lse=lse_RH,
            num_lines=rows * heads,
            splits=splits,
        )
    return out_RHC, lse_RH
