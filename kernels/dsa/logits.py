"""Lightning-indexer logits over paged float8 keys: a few queries a sequence (decode), or ragged rows of many (prefill).

    logit[r, s] = key_scale[s] * sum over heads h of weight[r, h] * max(<q[r, h], key[s]>, 0)

Keys are the rows of the tensor-core product, so that the sum over heads stays inside a warp. A program scores some
pages for one group of query rows. Rows of a group that belong to two sequences are scored one sequence after the other.

Legend: R query rows, B sequences, J queries a sequence, N index heads, D index width, P pages of a table, S positions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.arguments import check_tensor
from kernels.builds import Build
from kernels.cache.layout import PAGE_TOKENS, index_page_bytes

HEADS, WIDTH = 64, 128
PAGE_BYTES = index_page_bytes(WIDTH)
MOST_QUERIES = 4
PREFILL_ROWS = 2
WAVE = 2048  # programs that keep every multiprocessor busy a few times over


@triton.jit
def score_pages(
    q,
    weights,
    keys,
    scales,
    table,
    sequences,
    lengths,
    out,
    num_rows,
    width,
    chunk_pages,
    stride_page,
    stride_table,
    stride_out,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    RAGGED: tl.constexpr,
    PAGES: tl.constexpr,
    STAGES: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One group of rows over `chunk_pages` pages, PAGES of them at a time."""
    group = tl.program_id(0).to(tl.int64)
    first_page = tl.program_id(1) * chunk_pages
    o_row = tl.arange(0, ROWS)
    row = group * GROUP + o_row
    ok = (o_row < GROUP) & (row < num_rows)
    length = tl.minimum(tl.load(lengths + row, mask=ok, other=0), width)
    if RAGGED:
        of_row = tl.load(sequences + row, mask=ok, other=-1)
        first_sequence = tl.load(sequences + group * GROUP)
        last_sequence = tl.load(sequences + tl.minimum(group * GROUP + GROUP, num_rows) - 1)
        parts = 1 + (last_sequence != first_sequence).to(tl.int32)
    else:
        first_sequence = group.to(tl.int32)
        last_sequence = first_sequence
        of_row = tl.zeros([ROWS], tl.int32) + first_sequence
        parts = 1
    o_head = tl.arange(0, ROWS * HEADS)
    o_width = tl.arange(0, WIDTH)
    head_ok = (o_head < GROUP * HEADS) & (group * GROUP * HEADS + o_head < num_rows.to(tl.int64) * HEADS)
    q_rows = q + (group * GROUP * HEADS + o_head) * WIDTH
    b_q = tl.load(q_rows[:, None] + o_width[None, :], mask=head_ok[:, None], other=0.0)  # [ROWS * HEADS, WIDTH]
    b_w = tl.load(weights + group * GROUP * HEADS + o_head, mask=head_ok, other=0.0)
    o_key = tl.arange(0, PAGES * PAGE)
    o_page = o_key // PAGE
    o_place = o_key % PAGE
    for part in range(parts):
        sequence = tl.where(part == 0, first_sequence, last_sequence)
        seen = tl.where(of_row == sequence, length, 0)
        end_page = tl.minimum(first_page + chunk_pages, tl.cdiv(tl.max(seen, 0), PAGE))
        for page in tl.range(first_page, end_page, PAGES, num_stages=STAGES):
            i_page = page + o_page
            ids = tl.load(table + sequence.to(tl.int64) * stride_table + i_page, mask=i_page < end_page, other=0)
            start = tl.maximum(ids, 0).to(tl.int64) * stride_page
            b_k = tl.load(keys + (start + o_place * WIDTH)[:, None] + o_width[None, :])  # [keys, WIDTH]
            b_s = tl.load(scales + start // 4 + PAGE * WIDTH // 4 + o_place)
            dots = tl.maximum(tl.dot(b_k, tl.trans(b_q)), 0.0) * b_w[None, :]
            logits = tl.sum(tl.reshape(dots, [PAGES * PAGE, ROWS, HEADS]), 2) * b_s[:, None]  # [keys, ROWS]
            position = page * PAGE + o_key
            place = out + row[None, :] * stride_out + position[:, None]
            tl.store(place, logits, mask=position[:, None] < seen[None, :])


@functools.cache
def _build(rows: int, *, ragged: bool) -> Build:
    """The build for groups of `rows` query rows."""
    pages, warps = (2, 8) if ragged else (1, 4 if rows <= 2 else 8)
    return Build(
        kernel=score_pages,
        types={
            "q": "*fp8e4nv",
            "weights": "*fp32",
            "keys": "*fp8e4nv",
            "scales": "*fp32",
            "table": "*i32",
            "sequences": "*i32",
            "lengths": "*i32",
            "out": "*fp32",
        },
        constants={
            "GROUP": rows,
            "ROWS": triton.next_power_of_2(rows),
            "RAGGED": ragged,
            "PAGES": pages,
            "STAGES": 3,
            "HEADS": HEADS,
            "WIDTH": WIDTH,
            "PAGE": PAGE_TOKENS,
        },
        divisible=("stride_page",),
        num_warps=warps,
        num_stages=3,
        tensor_cores=True,
    )


def configs() -> Iterator[Build]:
    """Every build that the launchers here can choose."""
    yield _build(PREFILL_ROWS, ragged=True)
    for queries in range(1, MOST_QUERIES + 1):
        yield _build(queries, ragged=False)


def index_logits_decode(
    q_BJND: torch.Tensor,
    weights_BJN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    lengths_BJ: torch.Tensor,
    out_RS: torch.Tensor,
) -> None:
    """Logits of 1 to 4 queries of each sequence, written to out [B * J, S] float32, row by row.

    q: [B, J, 64, 128] float8_e4m3fn and weights [B, J, 64] float32, contiguous; the weights carry the query's scale and
    every constant. pages: [num_pages, 8448] uint8 (kernels.cache.layout), contiguous. block_table: [B, P] int32 page
    ids, any stride by row. lengths: [B, J] int32, how many keys each query sees. out may have any stride by row; only
    positions below a row's length (and below S and 64 * P) are written.

    Raises ValueError for another shape, dtype or layout.
    """
    sequences, queries = q_BJND.shape[:2]
    if not 1 <= queries <= MOST_QUERIES:
        raise ValueError(f"index logits of 1 to {MOST_QUERIES} queries a sequence, not {queries}")
    if block_table_BP.shape[0] != sequences:
        raise ValueError(f"the block table has {block_table_BP.shape[0]} rows for {sequences} sequences")
    build = _build(queries, ragged=False)
    q_RND, weights_RN = q_BJND.flatten(0, 1), weights_BJN.flatten(0, 1)
    _launch(build, q_RND, weights_RN, pages, block_table_BP, None, lengths_BJ.flatten(), out_RS)


def index_logits_prefill(
    q_RND: torch.Tensor,
    weights_RN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    sequences_R: torch.Tensor,
    lengths_R: torch.Tensor,
    out_RS: torch.Tensor,
) -> None:
    """Logits of rows of many sequences, written to out [R, S] float32.

    q: [R, 64, 128] float8_e4m3fn and weights [R, 64] float32, contiguous. sequences: [R] int32, the row of the block
    table that each query row belongs to; rows of one sequence lie together. lengths: [R] int32, how many keys each row
    sees (its own position plus one). The rest as for `index_logits_decode`.

    Raises ValueError for another shape, dtype or layout.
    """
    _launch(_build(PREFILL_ROWS, ragged=True), q_RND, weights_RN, pages, block_table_BP, sequences_R, lengths_R, out_RS)


def _launch(
    build: Build,
    q_RND: torch.Tensor,
    weights_RN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    sequences_R: torch.Tensor | None,
    lengths_R: torch.Tensor,
    out_RS: torch.Tensor,
) -> None:
    rows = q_RND.shape[0]
    check_tensor(q_RND, "q", (rows, HEADS, WIDTH), torch.float8_e4m3fn)
    check_tensor(weights_RN, "weights", (rows, HEADS), torch.float32)
    check_tensor(pages, "pages", (pages.shape[0], PAGE_BYTES), torch.uint8)
    check_tensor(lengths_R, "lengths", (rows,), torch.int32)
    check_tensor(block_table_BP, "block_table", tuple(block_table_BP.shape), torch.int32, row_stride=True)
    check_tensor(out_RS, "out", (rows, out_RS.shape[1]), torch.float32, row_stride=True)
    if sequences_R is not None:
        check_tensor(sequences_R, "sequences", (rows,), torch.int32)
    width = min(out_RS.shape[1], block_table_BP.shape[1] * PAGE_TOKENS)
    groups, num_pages = triton.cdiv(rows, build.constants["GROUP"]), triton.cdiv(width, PAGE_TOKENS)
    # more pages a program once there are programs enough: the queries are loaded once a program
    chunk_pages = 16 if groups * num_pages >= 16 * WAVE else 4
    build.launch(
        (groups, triton.cdiv(num_pages, chunk_pages)),
        q=q_RND,
        weights=weights_RN,
        keys=pages.view(torch.float8_e4m3fn),
        scales=pages.view(torch.float32),
        table=block_table_BP,
        sequences=lengths_R if sequences_R is None else sequences_R,
        lengths=lengths_R,
        out=out_RS,
        num_rows=rows,
        width=width,
        chunk_pages=chunk_pages,
        stride_page=pages.stride(0),
        stride_table=block_table_BP.stride(0),
        stride_out=out_RS.stride(0),
    )
