"""Device code of latent attention over single records: queries of one row against the records that it selected.

All heads of a row read the same records, so the heads are the rows of the tensor-core products. A program keeps the
queries of its heads (latent and rotated) and half of the value columns: two halves multiply queries and keys twice, but
neither spills, and both read the same cache lines. Softmax runs in base 2 over tiles of records, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(128)  # numbers under one float8 scale; every tile of records is this wide
LATENT = tl.constexpr(512)
ROPE = tl.constexpr(64)
FAR_BELOW = tl.constexpr(-1e30)  # a score that weighs nothing; infinities would give NaN in differences
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))
POSITIVE_INFINITY = tl.constexpr(float("inf"))
NATURAL = tl.constexpr(0.6931471805599453)


@triton.jit
def attend_rows(
    q,
    records,
    codes,
    scales,
    slots,
    table,
    sequences,
    lengths,
    out,
    lse,
    scale_log2,
    num_rows,
    num_heads,
    num_slots,
    width,
    split_width,
    stride_q_row,
    stride_q_head,
    stride_record,
    stride_slots,
    stride_table,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MOST: tl.constexpr,
    HALVES: tl.constexpr,
    FLOAT8: tl.constexpr,
    PAGED: tl.constexpr,
    PARTIAL: tl.constexpr,
    PAGE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One row, one block of heads, one half of the values, one split of the records.

    records is the cache as bfloat16, codes as float8, scales as float32: views of the same memory.
    """
    blocks = tl.cdiv(num_heads, BLOCK_H)
    row = tl.program_id(0).to(tl.int64) // (blocks * HALVES)
    block = tl.program_id(0) // HALVES % blocks
    half = tl.program_id(0) % HALVES
    split = tl.program_id(1)
    o_h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    o_g = tl.arange(0, GROUP)
    o_r = tl.arange(0, ROPE)
    m_h = (o_h < num_heads)[:, None]

    # tiles 0 and 1 are this program's values; with one half, so are 2 and 3
    g0 = half * 2
    g1 = half * 2 + 1
    g2 = (2 - half * 2) if HALVES == 2 else 2
    g3 = g2 + 1
    p_q = q + row * stride_q_row + o_h[:, None] * stride_q_head
    b_q0 = tl.load(p_q + g0 * GROUP + o_g[None, :], mask=m_h, other=0.0)
    b_q1 = tl.load(p_q + g1 * GROUP + o_g[None, :], mask=m_h, other=0.0)
    b_q2 = tl.load(p_q + g2 * GROUP + o_g[None, :], mask=m_h, other=0.0)
    b_q3 = tl.load(p_q + g3 * GROUP + o_g[None, :], mask=m_h, other=0.0)
    b_qr = tl.load(p_q + LATENT + o_r[None, :], mask=m_h, other=0.0)

    most = tl.full([BLOCK_H], FAR_BELOW, tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    a0 = tl.zeros([BLOCK_H, GROUP], tl.float32)
    a1 = tl.zeros([BLOCK_H, GROUP], tl.float32)
    if HALVES == 1:
        a2 = tl.zeros([BLOCK_H, GROUP], tl.float32)
        a3 = tl.zeros([BLOCK_H, GROUP], tl.float32)

    start = split * split_width
    end = tl.minimum(tl.minimum(start + split_width, width), tl.load(lengths + row))
    spare = 0
    if PAGED:
        pages = table + tl.load(sequences + row).to(tl.int64) * stride_table
    else:
        # records that are not selected are read from a place that is: what lies elsewhere may be NaN
        p_slots = slots + row * stride_slots
        o_s = start + tl.arange(0, MOST)
        all_slots = tl.load(p_slots + o_s, mask=o_s < end, other=-1)
        spare = tl.max(tl.where(all_slots < num_slots, all_slots, -1), 0)
        end = tl.where(spare >= 0, end, start)
    for first in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        o_n = first + tl.arange(0, BLOCK_N)
        if PAGED:
            ok = o_n < end
            position = tl.minimum(o_n, end - 1)
            slot = tl.load(pages + position // PAGE) * PAGE + position % PAGE
        else:
            slot = tl.load(p_slots + o_n, mask=o_n < end, other=-1)
            ok = (slot >= 0) & (slot < num_slots)
            slot = tl.where(ok, slot, spare)
        place = slot.to(tl.int64) * stride_record
        b_k0 = record_values(records, codes, scales, place, g0, o_g, FLOAT8)
        b_k1 = record_values(records, codes, scales, place, g1, o_g, FLOAT8)
        b_k2 = record_values(records, codes, scales, place, g2, o_g, FLOAT8)
        b_k3 = record_values(records, codes, scales, place, g3, o_g, FLOAT8)
        rope = place // 2 + (LATENT + LATENT // GROUP * 4) // 2 if FLOAT8 else place + LATENT
        b_kr = tl.load(records + rope[:, None] + o_r[None, :])
        scores = tl.dot(b_q0, tl.trans(b_k0))
        scores = tl.dot(b_q1, tl.trans(b_k1), scores)
        scores = tl.dot(b_q2, tl.trans(b_k2), scores)
        scores = tl.dot(b_q3, tl.trans(b_k3), scores)
        scores = tl.dot(b_qr, tl.trans(b_kr), scores)
        scores = tl.where(ok[None, :], scores * scale_log2, FAR_BELOW)
        higher = tl.maximum(most, tl.max(scores, 1))
        shrink = tl.exp2(most - higher)
        b_p = tl.where(ok[None, :], tl.exp2(scores - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(b_p, 1)
        weights = b_p.to(tl.bfloat16)
        a0 = tl.dot(weights, b_k0, a0 * shrink[:, None])
        a1 = tl.dot(weights, b_k1, a1 * shrink[:, None])
        if HALVES == 1:
            a2 = tl.dot(weights, b_k2, a2 * shrink[:, None])
            a3 = tl.dot(weights, b_k3, a3 * shrink[:, None])
        most = higher

    some = total > 0
    inverse = tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0)[:, None]
    line = (split.to(tl.int64) * num_rows + row) * num_heads + o_h
    p_out = out + (line * LATENT)[:, None] + o_g[None, :]
    tl.store(p_out + g0 * GROUP, (a0 * inverse).to(out.dtype.element_ty), mask=m_h)
    tl.store(p_out + g1 * GROUP, (a1 * inverse).to(out.dtype.element_ty), mask=m_h)
    if HALVES == 1:
        tl.store(p_out + g2 * GROUP, (a2 * inverse).to(out.dtype.element_ty), mask=m_h)
        tl.store(p_out + g3 * GROUP, (a3 * inverse).to(out.dtype.element_ty), mask=m_h)
    if half == 0:
        log_total = most + tl.log2(tl.where(some, total, 1.0))
        if PARTIAL:
            log_total = tl.where(some, log_total, NEGATIVE_INFINITY)
        else:
            log_total = tl.where(some, log_total * NATURAL, POSITIVE_INFINITY)
        tl.store(lse + line, log_total, mask=o_h < num_heads)


@triton.jit
def record_values(records, codes, scales, place, group, o_g, FLOAT8: tl.constexpr):
    """One group of 128 latent numbers of each record: [records, 128] bfloat16. Scales are powers of two: exact."""
    if FLOAT8:
        b_c = tl.load(codes + (place + group * GROUP)[:, None] + o_g[None, :])
        b_s = tl.load(scales + place // 4 + LATENT // 4 + group)
        return (b_c.to(tl.float32) * b_s[:, None]).to(tl.bfloat16)
    else:
        return tl.load(records + (place + group * GROUP)[:, None] + o_g[None, :])


@triton.jit
def combine_splits(partial, partial_lse, out, lse, num_lines, splits, MOST_SPLITS: tl.constexpr, LATENT: tl.constexpr):
    """One head of one row: the splits, weighted by their shares of the softmax. A split without records weighs 0."""
    line = tl.program_id(0).to(tl.int64)
    o_s = tl.arange(0, MOST_SPLITS)
    o_c = tl.arange(0, LATENT)
    logs = tl.load(partial_lse + o_s.to(tl.int64) * num_lines + line, mask=o_s < splits, other=NEGATIVE_INFINITY)
    most = tl.max(logs, 0)
    base = tl.where(most > NEGATIVE_INFINITY, most, 0.0)
    total = tl.sum(tl.exp2(logs - base), 0)
    some = total > 0
    total = tl.where(some, total, 1.0)
    inverse = tl.where(some, 1.0 / total, 0.0)
    sums = tl.zeros([LATENT], tl.float32)
    place = line
    for _ in range(splits):
        share = tl.exp2(tl.load(partial_lse + place) - base) * inverse
        sums += share * tl.load(partial + place * LATENT + o_c)
        place += num_lines
    tl.store(out + line * LATENT + o_c, sums.to(out.dtype.element_ty))
    tl.store(lse + line, tl.where(some, (base + tl.log2(total)) * NATURAL, POSITIVE_INFINITY))
