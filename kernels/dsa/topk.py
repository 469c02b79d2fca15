"""Exact top-k of each row of logits, up to 2048 of up to 262,144 positions, the same bits on every run.

A program holds up to 32,768 logits in registers as integers of the same order, and finds the k-th largest bit by bit,
counting how many are not below each candidate; it stops as soon as a candidate has exactly k. No memory is read twice
and nothing is counted with atomics. A longer row is cut into chunks whose own top k are candidates for a second launch.
Candidates keep the order of positions, so that of equal logits at the cutoff the lower positions win in both.

Legend: R rows, S positions, C chunks of a row, K selected, B sequences, P pages of a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.arguments import check_tensor
from kernels.builds import Build
from kernels.cache.layout import PAGE_TOKENS
from kernels.lang import ordered, unordered

MOST_SELECTED = 2048
CHUNK = 16384
STEP = 2048  # logits whose places are counted at a time
WHOLE = (4096, 16384)  # rows that one program takes in one launch
MERGED = (4096, 8192, 16384, 32768)  # candidates of a row in the second launch
MOST_POSITIONS = MERGED[-1] // MOST_SELECTED * CHUNK
NOTHING = tl.constexpr(-(2**31))


@triton.jit
def select_largest(
    logits,
    positions,
    lengths,
    table,
    sequences,
    out_logits,
    out_positions,
    k,
    width,
    mapped,
    stride_logits,
    stride_table,
    stride_out,
    stride_out_chunk,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
    STAGE: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One row, or one chunk of it. STAGE: "whole" row, "chunk" of a row, or "merge" of the candidates of its chunks."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    length = tl.minimum(tl.load(lengths + row), width)
    first = 0
    if STAGE == "chunk":
        first = chunk * CHUNK
        remaining = length - first
    elif STAGE == "merge":
        remaining = tl.cdiv(length, CHUNK) * k  # candidates of the chunks that begin below the length
    else:
        remaining = length
    source = logits + row * stride_logits + first
    keys = _keys(source, tl.arange(0, BLOCK), remaining)
    valid = tl.sum((keys > NOTHING).to(tl.int32), 0)

    # the largest cutoff that at least k keys reach, from the highest bit on; nothing to find among k keys or fewer
    not_negative = tl.sum((keys >= 0).to(tl.int32), 0)
    cutoff = tl.where(not_negative >= k, 0, NOTHING)
    reached = tl.where(not_negative >= k, not_negative, valid)
    bit = tl.where(valid > k, 30, -1)
    while (bit >= 0) & (reached != k):
        candidate = cutoff + (1 << bit)
        count = tl.sum((keys >= candidate).to(tl.int32), 0)
        cutoff = tl.where(count >= k, candidate, cutoff)
        reached = tl.where(count >= k, count, reached)
        bit -= 1
    # if more than k reach it, it is the k-th largest key itself, and some of those that equal it stay outside
    surplus = tl.maximum(reached, k) - k
    equals = tl.sum((keys == cutoff).to(tl.int32), 0)
    room = tl.where(valid > k, equals - surplus, equals)

    if remaining > 0 or STAGE != "chunk":
        target = row * stride_out + chunk * stride_out_chunk
        found = 0
        met = 0
        o = tl.arange(0, STEP)
        for start in range(0, tl.minimum(BLOCK, remaining), STEP):
            again = _keys(source, start + o, remaining)
            equal = (again == cutoff).to(tl.int32)
            chosen = (again > NOTHING) & ((again > cutoff) | ((equal != 0) & (met + tl.cumsum(equal, 0) <= room)))
            place = found + tl.cumsum(chosen.to(tl.int32), 0) - 1
            if STAGE == "merge":
                position = tl.load(positions + row * stride_logits + start + o, mask=chosen, other=0)
            else:
                position = first + start + o
            if STAGE == "chunk":
                tl.store(out_logits + target + place, unordered(again), mask=chosen)
            elif mapped:
                sequence = tl.load(sequences + row).to(tl.int64)
                page = tl.load(table + sequence * stride_table + position // PAGE, mask=chosen, other=0)
                position = page * PAGE + position % PAGE
            tl.store(out_positions + target + place, position, mask=chosen)
            found += tl.sum(chosen.to(tl.int32), 0)
            met += tl.sum(equal, 0)
        for start in range(found // STEP * STEP, k, STEP):
            rest = (start + o >= found) & (start + o < k)
            if STAGE == "chunk":
                tl.store(out_logits + target + start + o, float("-inf"), mask=rest)
            else:
                tl.store(out_positions + target + start + o, -1, mask=rest)


@triton.jit
def _keys(source, o, remaining):
    """Logits as integers of their order; -0.0 is 0.0, and NaN and what is past the length are NOTHING."""
    x = tl.load(source + o, mask=o < remaining, other=float("-inf"))
    return tl.where(x > float("-inf"), ordered(tl.where(x == 0.0, 0.0, x)), NOTHING)


@functools.cache
def _build(stage: str, block: int) -> Build:
    """The build of one stage for up to `block` logits a program."""
    return Build(
        kernel=select_largest,
        types={
            "logits": "*fp32",
            "positions": "*i32",
            "lengths": "*i32",
            "table": "*i32",
            "sequences": "*i32",
            "out_logits": "*fp32",
            "out_positions": "*i32",
        },
        constants={"BLOCK": block, "CHUNK": CHUNK, "STEP": STEP, "STAGE": stage, "PAGE": PAGE_TOKENS},
        num_warps=min(16, max(8, block // 1024)),
        num_stages=1,
    )


def configs() -> Iterator[Build]:
    """Every build that the launcher here can choose."""
    yield _build("chunk", CHUNK)
    for block in WHOLE:
        yield _build("whole", block)
    for block in MERGED:
        yield _build("merge", block)


def topk(
    logits_RS: torch.Tensor,
    lengths_R: torch.Tensor,
    k: int,
    *,
    block_table_BP: torch.Tensor | None = None,
    sequences_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """Positions of the k largest logits of each row: [R, k] int32, ascending, padded with -1.

    logits: [R, S] float32, any stride by row, S up to 262,144; only the first lengths[r] (int32 [R]) of row r are read.
    Of equal logits at the cutoff the lower positions win (-0.0 equals 0.0). Minus infinity and NaN are never selected.
    k: 1 to 2048. With block_table [B, P] int32 (any stride by row) and sequences [R] int32 (each row's row of it) the
    result holds slots, page * 64 + place, in the order of their positions.

    Raises ValueError for another shape, dtype or layout, or numbers beyond these limits.
    """
    rows, width = logits_RS.shape
    if not 1 <= k <= MOST_SELECTED:
        raise ValueError(f"top-k selects 1 to {MOST_SELECTED} positions, not {k}")
    if width > MOST_POSITIONS:
        raise ValueError(f"top-k takes rows of up to {MOST_POSITIONS} logits, not {width}")
    if (block_table_BP is None) != (sequences_R is None):
        raise ValueError("top-k takes a block table and the sequence of each row, or neither")
    check_tensor(logits_RS, "logits", (rows, width), torch.float32, row_stride=True)
    check_tensor(lengths_R, "lengths", (rows,), torch.int32)
    if block_table_BP is not None and sequences_R is not None:
        check_tensor(block_table_BP, "block_table", tuple(block_table_BP.shape), torch.int32, row_stride=True)
        check_tensor(sequences_R, "sequences", (rows,), torch.int32)
        width = min(width, block_table_BP.shape[1] * PAGE_TOKENS)
    out_RK = torch.empty(rows, k, dtype=torch.int32, device=logits_RS.device)
    mapping = {
        "lengths": lengths_R,
        "table": lengths_R if block_table_BP is None else block_table_BP,
        "sequences": lengths_R if sequences_R is None else sequences_R,
        "k": k,
        "width": width,
        "mapped": int(block_table_BP is not None),
        "stride_table": 0 if block_table_BP is None else block_table_BP.stride(0),
    }
    result = {"out_positions": out_RK, "stride_out": k, "stride_out_chunk": 0}
    if width <= WHOLE[-1]:
        block = min(block for block in WHOLE if block >= width)
        source = {"logits": logits_RS, "positions": out_RK, "stride_logits": logits_RS.stride(0)}
        _build("whole", block).launch((rows, 1), **source, out_logits=logits_RS, **mapping, **result)
        return out_RK
    chunks = triton.cdiv(width, CHUNK)
    best_RCK = torch.empty(rows, chunks, k, dtype=torch.float32, device=logits_RS.device)
    where_RCK = torch.empty(rows, chunks, k, dtype=torch.int32, device=logits_RS.device)
    _build("chunk", CHUNK).launch(
        (rows, chunks),
        logits=logits_RS,
        positions=where_RCK,
        stride_logits=logits_RS.stride(0),
        out_logits=best_RCK,
        out_positions=where_RCK,
        stride_out=chunks * k,
        stride_out_chunk=k,
        **mapping,
    )
    block = min(block for block in MERGED if block >= chunks * k)
    source = {"logits": best_RCK, "positions": where_RCK, "stride_logits": chunks * k}
    _build("merge", block).launch((rows, 1), **source, out_logits=best_RCK, **mapping, **result)
    return out_RK
