"""Attention of pieces of a prompt over all keys of their sequences, in the multi-head form.

    out[t, h] = sum over keys j that t sees of softmax_j(scale * (<q_nope[t, h], w_uk[h] c_j> + <q_rope[t, h], r_j>))
                times w_uv[h] c_j;   record j is the latent c_j and the rotated key r_j

The records of every piece's sequence are gathered from their pages, then multiplied out to a key and a value for each
head, and each tile of queries takes its keys tile by tile, so that scores never lie in memory. A pair of query and key
costs 192 + 128 products a head, where `attend_paged` costs 576 + 512; but every key costs 512 * (128 + 128) first.

Legend: T tokens of the pieces, H heads, n unrotated width, R rotated width, C latent width, v value width, S keys of
all pieces, Q = C + R, P pieces, B pages of a table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.arguments import check_tensor
from kernels.builds import Build
from kernels.cache.layout import PAGE_TOKENS
from kernels.dsa.attend import LATENT_DIM, QUERY_DIM, RECORD_BYTES, ROPE_DIM
from kernels.dsa.attend_kernel import FAR_BELOW, GROUP, LATENT, NATURAL, ROPE, record_values
from kernels.dsa.pieces import PieceRun
from kernels.quant.absorb import expand_values

NOPE_DIM = VALUE_DIM = 128
SMALL_ROWS, LARGE_ROWS = 64, 128


@triton.jit
def gather_pages(
    records, codes, scales, table, spans, out, first_key, stride_table, stride_record,
    PAGE: tl.constexpr, FLOAT8: tl.constexpr,
):  # fmt: skip
    """One page of one piece's sequence, as bfloat16, to the piece's place; what lies past its keys is not written."""
    page = tl.program_id(0)
    piece = tl.program_id(1)
    first = tl.load(spans + piece * 4 + 2) - first_key
    num_keys = tl.load(spans + piece * 4 + 3)
    if page * PAGE < num_keys:
        o_n = tl.arange(0, PAGE)
        o_g = tl.arange(0, GROUP)
        o_r = tl.arange(0, ROPE)
        m_n = (page * PAGE + o_n < num_keys)[:, None]
        slot = tl.load(table + piece.to(tl.int64) * stride_table + page).to(tl.int64) * PAGE + o_n
        place = slot * stride_record
        p_out = out + ((first + page * PAGE + o_n).to(tl.int64) * (LATENT + ROPE))[:, None]
        for group in tl.static_range(LATENT // GROUP):
            b_x = record_values(records, codes, scales, place, group, o_g, FLOAT8)
            tl.store(p_out + group * GROUP + o_g[None, :], b_x, mask=m_n)
        rope = place // 2 + (LATENT + LATENT // GROUP * 4) // 2 if FLOAT8 else place + LATENT
        tl.store(p_out + LATENT + o_r[None, :], tl.load(records + rope[:, None] + o_r[None, :]), mask=m_n)


@triton.jit
def attend_pieces(
    q_nope, q_rope, keys, latents, values, spans, out, lse, scale_log2, first_row, first_key, num_heads,
    stride_nope_row, stride_nope_head, stride_rope_row, stride_rope_head, stride_key,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one piece, one head. The last tile, which sees the most keys, comes first."""
    head = tl.program_id(1)
    span = spans + tl.program_id(2) * 4
    num_rows = tl.load(span + 1)
    tile = tl.cdiv(num_rows, BLOCK_M) - 1 - tl.program_id(0)
    if tile >= 0:
        row = tl.load(span) - first_row
        key = tl.load(span + 2) - first_key
        num_keys = tl.load(span + 3)
        o_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        o_g = tl.arange(0, GROUP)
        o_r = tl.arange(0, ROPE)
        seen = num_keys - num_rows + o_m + 1
        end = tl.minimum(num_keys, num_keys - num_rows + (tile + 1) * BLOCK_M)
        # rows past the piece compute what its last one does, and keys past the end are the last one: all of it exists
        place = (row + tl.minimum(o_m, num_rows - 1)).to(tl.int64)[:, None]
        b_qn = tl.load(q_nope + place * stride_nope_row + head * stride_nope_head + o_g[None, :])
        b_qr = tl.load(q_rope + place * stride_rope_row + head * stride_rope_head + o_r[None, :])
        most = tl.full([BLOCK_M], FAR_BELOW, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        sums = tl.zeros([BLOCK_M, GROUP], tl.float32)
        for first in tl.range(0, end, BLOCK_N, num_stages=STAGES):
            o_n = first + tl.arange(0, BLOCK_N)
            at = (key + tl.minimum(o_n, end - 1)).to(tl.int64)[:, None]
            b_k = tl.load(keys + at * stride_key + head * GROUP + o_g[None, :])
            b_r = tl.load(latents + at * (LATENT + ROPE) + LATENT + o_r[None, :])
            b_v = tl.load(values + at * stride_key + head * GROUP + o_g[None, :])
            scores = tl.dot(b_qn, tl.trans(b_k))
            scores = tl.dot(b_qr, tl.trans(b_r), scores)
            scores = tl.where(o_n[None, :] < seen[:, None], scores * scale_log2, FAR_BELOW)
            higher = tl.maximum(most, tl.max(scores, 1))
            shrink = tl.exp2(most - higher)
            # every row sees the first key, so `higher` is a true score, and a key that is not seen weighs 0
            b_p = tl.exp2(scores - higher[:, None])
            total = total * shrink + tl.sum(b_p, 1)
            sums = tl.dot(b_p.to(tl.bfloat16), b_v, sums * shrink[:, None])
            most = higher
        line = (row + o_m).to(tl.int64) * num_heads + head
        m_m = o_m < num_rows
        b_o = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + (line * GROUP)[:, None] + o_g[None, :], b_o, mask=m_m[:, None])
        tl.store(lse + line, (most + tl.log2(total)) * NATURAL, mask=m_m)


@functools.cache
def _gather_build(*, float8: bool) -> Build:
    return Build(
        kernel=gather_pages,
        types={
            "records": "*bf16", "codes": "*fp8e4nv", "scales": "*fp32",
            "table": "*i32", "spans": "*i32", "out": "*bf16",
        },
        constants={"PAGE": PAGE_TOKENS, "FLOAT8": float8},
        divisible=("stride_record",),
        num_warps=8,
    )  # fmt: skip


@functools.cache
def _attend_build(rows: int) -> Build:
    strides = ("stride_nope_row", "stride_nope_head", "stride_rope_row", "stride_rope_head", "stride_key")
    return Build(
        kernel=attend_pieces,
        types=dict.fromkeys(("q_nope", "q_rope", "keys", "latents", "values", "out"), "*bf16")
        | {"spans": "*i32", "lse": "*fp32", "scale_log2": "fp32"},
        constants={"BLOCK_M": rows, "BLOCK_N": 64, "STAGES": 2},
        divisible=strides,
        num_warps=rows // 16,
        num_stages=2,
        tensor_cores=True,
    )


def configs() -> Iterator[Build]:
    """Every build that the launcher here can choose; the products are `kernels.quant.absorb`'s."""
    yield from (_gather_build(float8=float8) for float8 in (False, True))
    yield from (_attend_build(rows) for rows in (SMALL_ROWS, LARGE_ROWS))


def attend_dense(
    q_nope_THn: torch.Tensor,
    q_rope_THR: torch.Tensor,
    records: torch.Tensor,
    block_table_PB: torch.Tensor,
    spans_P4: torch.Tensor,
    run: PieceRun,
    w_uk_HnC: torch.Tensor,
    w_uv_HvC: torch.Tensor,
    scale: float,
    *,
    out_THv: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of a run of pieces over all keys of their sequences: (out [T, H, 128], lse [T, H] float32).

    q_nope: [T, H, 128] and q_rope (rotated): [T, H, 64], bfloat16, last dimension contiguous, other strides multiples
    of 16; T is run.num_rows. records: the cache as for `attend_paged`, with the pieces' own records already written.
    block_table: [P, B] int32, any stride by row. spans: [P, 4] int32, contiguous, of each piece its first row, its
    rows, its first key and its keys; rows and keys of the pieces follow each other from run.first_row and run.first_key
    on. The last query of a piece sees all its keys, the one before it one less. w_uk, w_uv: [H, 128, 512] bfloat16,
    contiguous. out: where to write, [T, H, 128] bfloat16 contiguous; a new tensor if None.

    Keys and values of the heads are rounded to bfloat16, and take run.num_keys * H * 512 bytes. lse is the natural
    logarithm of the sum of exp(scale * <q, key>).

    Raises ValueError for another shape, dtype or layout.
    """
    rows, heads = run.num_rows, w_uk_HnC.shape[0]
    for name, q, width in (("q_nope", q_nope_THn, NOPE_DIM), ("q_rope", q_rope_THR, ROPE_DIM)):
        if tuple(q.shape) != (rows, heads, width) or q.dtype != torch.bfloat16 or q.stride(2) != 1:
            raise ValueError(
                f"{name} is {tuple(q.shape)} {q.dtype} with strides {q.stride()}, expected {(rows, heads, width)} "
                "bfloat16 with a contiguous last dimension"
            )
    float8 = records.dtype == torch.uint8
    record = (records.shape[0], RECORD_BYTES if float8 else QUERY_DIM)
    check_tensor(records, "records", record, torch.uint8 if float8 else torch.bfloat16)
    pieces = spans_P4.shape[0]
    check_tensor(spans_P4, "spans", (pieces, 4), torch.int32)
    check_tensor(block_table_PB, "block_table", (pieces, block_table_PB.shape[1]), torch.int32, row_stride=True)
    for name, w, width in (("w_uk", w_uk_HnC, NOPE_DIM), ("w_uv", w_uv_HvC, VALUE_DIM)):
        check_tensor(w, name, (heads, width, LATENT_DIM), torch.bfloat16)
    pages = triton.cdiv(run.most_keys, PAGE_TOKENS)
    if pages > block_table_PB.shape[1]:
        raise ValueError(
            f"a piece has {run.most_keys} keys, its table {block_table_PB.shape[1]} pages of {PAGE_TOKENS}"
        )
    if out_THv is None:
        out_THv = torch.empty(rows, heads, VALUE_DIM, dtype=torch.bfloat16, device=q_nope_THn.device)
    check_tensor(out_THv, "out", (rows, heads, VALUE_DIM), torch.bfloat16)
    lse_TH = torch.empty(rows, heads, dtype=torch.float32, device=q_nope_THn.device)
    latents_SQ = torch.empty(run.num_keys, QUERY_DIM, dtype=torch.bfloat16, device=q_nope_THn.device)
    _gather_build(float8=float8).launch(
        (pages, pieces),
        records=records.view(torch.bfloat16),
        codes=records.view(torch.float8_e4m3fn),
        scales=records.view(torch.float32),
        table=block_table_PB,
        spans=spans_P4,
        out=latents_SQ,
        first_key=run.first_key,
        stride_table=block_table_PB.stride(0),
        stride_record=records.stride(0),
    )
    latents_SHC = latents_SQ[:, None, :LATENT_DIM].expand(-1, heads, -1)
    keys_SHn = expand_values(latents_SHC, w_uk_HnC)
    tile = SMALL_ROWS if run.most_rows <= SMALL_ROWS else LARGE_ROWS
    _attend_build(tile).launch(
        (triton.cdiv(run.most_rows, tile), heads, pieces),
        q_nope=q_nope_THn,
        q_rope=q_rope_THR,
        keys=keys_SHn,
        latents=latents_SQ,
        values=expand_values(latents_SHC, w_uv_HvC),
        spans=spans_P4,
        out=out_THv,
        lse=lse_TH,
        scale_log2=scale * math.log2(math.e),
        first_row=run.first_row,
        first_key=run.first_key,
        num_heads=heads,
        stride_nope_row=q_nope_THn.stride(0),
        stride_nope_head=q_nope_THn.stride(1),
        stride_rope_row=q_rope_THR.stride(0),
        stride_rope_head=q_rope_THR.stride(1),
        stride_key=heads * NOPE_DIM,
    )
    return out_THv, lse_TH
