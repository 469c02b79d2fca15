"""The next token of every row in three launches: largest logits, noisy scores, the choice under the row's filters.

What each row gets is what `reference.greedy`, `restrict_to_top_k` and `choose` give it.

Legend: N rows, V vocabulary, S spans of the vocabulary that programs share out.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.sampling.device import best_of, gumbel, mass, mix, order_key
from kernels.sampling.reference import MAX_VOCAB
from kernels.sampling.rows import Draws

BLOCK = 2048
SPAN = 8192
"""Token ids of one program in the first two launches."""

PICK_BLOCK = 4096


@triton.jit
def maximum_kernel(logits, part_best, part_id, vocab, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    """Largest logit of a row's span and its lowest id; NaN where the span has one."""
    i_n = tl.program_id(0).to(tl.int64)
    i_s = tl.program_id(1)
    best = -float("inf")
    best_id = 0x7FFFFFFF
    bad = 0
    for start in range(i_s * SPAN, tl.minimum(i_s * SPAN + SPAN, vocab), BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        b_x = tl.load(logits + i_n * vocab + o_v, mask=o_v < vocab, other=-float("inf"))
        bad |= tl.max((b_x != b_x).to(tl.int32), 0)
        best, best_id = best_of(tl.where(b_x == b_x, b_x, -float("inf")), o_v, best, best_id)
    place = i_n * tl.num_programs(1) + i_s
    tl.store(part_best + place, tl.where(bad != 0, float("nan"), best))
    tl.store(part_id + place, best_id)


@triton.jit
def row_best(part_best, part_id, i_n, spans, SPANS: tl.constexpr):
    """The best of a row from those of its spans: (value, NaN if any is, lowest id)."""
    o_s = tl.arange(0, SPANS)
    m_s = o_s < spans
    b_best = tl.load(part_best + i_n * spans + o_s, mask=m_s, other=-float("inf"))
    b_id = tl.load(part_id + i_n * spans + o_s, mask=m_s, other=0x7FFFFFFF)
    bad = tl.max((b_best != b_best).to(tl.int32), 0)
    best, best_id = best_of(tl.where(b_best == b_best, b_best, -float("inf")), b_id, -float("inf"), 0x7FFFFFFF)
    return tl.where(bad != 0, float("nan"), best), best_id


@triton.jit
def is_finite(x):
    """Neither NaN nor an infinity."""
    return tl.abs(x) < float("inf")


@triton.jit
def score_kernel(
    logits, part_best, part_id, seeds, positions, temperatures, top_ks, top_ps, log_min_ps, scores, part_score,
    score_id, vocab, BLOCK: tl.constexpr, SPAN: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """Scaled logits plus noise, minus infinity below min_p: kept for rows with filters, and the span's best."""
    i_n = tl.program_id(0).to(tl.int64)
    i_s = tl.program_id(1)
    spans = tl.num_programs(1)
    temperature = tl.load(temperatures + i_n)
    largest, _ = row_best(part_best, part_id, i_n, spans, SPANS)
    if (temperature > 0) & is_finite(largest):
        filtered = (tl.load(top_ks + i_n) > 0) | (tl.load(top_ps + i_n) < 1)
        log_min_p = tl.load(log_min_ps + i_n)
        position = tl.load(positions + i_n)
        key0 = mix(tl.load(seeds + 2 * i_n) ^ position)
        key1 = mix(tl.load(seeds + 2 * i_n + 1) ^ position)
        best = -float("inf")
        best_id = 0x7FFFFFFF
        for start in range(i_s * SPAN, tl.minimum(i_s * SPAN + SPAN, vocab), BLOCK):
            o_v = start + tl.arange(0, BLOCK)
            m_v = o_v < vocab
            b_x = tl.load(logits + i_n * vocab + o_v, mask=m_v, other=-float("inf"))
            b_y = tl.div_rn(b_x - largest, temperature)
            b_score = tl.where(b_y.to(tl.float64) < log_min_p, -float("inf"), b_y + gumbel(key0, key1, o_v))
            b_score = tl.where(m_v, b_score, -float("inf"))
            if filtered:
                tl.store(scores + i_n * vocab + o_v, b_score, mask=m_v)
            best, best_id = best_of(b_score, o_v, best, best_id)
        tl.store(part_score + i_n * spans + i_s, best)
        tl.store(score_id + i_n * spans + i_s, best_id)


@triton.jit
def kept(b_key, o_v, key, last):
    """Whether tokens come no later in the order than the one of this key and id."""
    return (b_key > key) | ((b_key == key) & (o_v <= last))


@triton.jit
def cutoff(p_x, vocab, k, BLOCK: tl.constexpr):
    """Key and id of the k-th token in the order: four digits of 8 bits, then the tie's place."""
    key = 0
    left = k
    o_d = tl.arange(0, 256)
    for step in tl.static_range(4):
        b_count = tl.zeros([256], tl.int32)
        for start in range(0, vocab, BLOCK):
            o_v = start + tl.arange(0, BLOCK)
            m_v = o_v < vocab
            b_key = order_key(tl.load(p_x + o_v, mask=m_v, other=0.0))
            if step == 0:
                b_digit = (b_key >> 24) + 128
            else:
                m_v = m_v & ((b_key >> (32 - 8 * step)) == key)
                b_digit = (b_key >> (24 - 8 * step)) & 255
            b_count += tl.histogram(b_digit, 256, mask=m_v)
        b_from = tl.sum(b_count, 0) - tl.cumsum(b_count, 0) + b_count
        digit = tl.sum((b_from >= left).to(tl.int32), 0) - 1
        left -= tl.sum(tl.where(o_d > digit, b_count, 0), 0)
        key = digit - 128 if step == 0 else key * 256 + digit
    seen = 0
    last = -1
    for start in range(0, vocab, BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        m_v = o_v < vocab
        b_tie = (m_v & (order_key(tl.load(p_x + o_v, mask=m_v, other=0.0)) == key)).to(tl.int32)
        b_rank = tl.cumsum(b_tie, 0) + seen
        last = tl.maximum(last, tl.max(tl.where((b_tie != 0) & (b_rank == left), o_v, -1), 0))
        seen += tl.sum(b_tie, 0)
    return key, last


@triton.jit
def winner_of(p_x, p_score, vocab, key, last, BLOCK: tl.constexpr):
    """The best score among the tokens up to (key, last) in the order: its id and its key."""
    best = -float("inf")
    best_id = 0x7FFFFFFF
    for start in range(0, vocab, BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        m_v = o_v < vocab
        b_key = order_key(tl.load(p_x + o_v, mask=m_v, other=0.0))
        m_v = m_v & kept(b_key, o_v, key, last)
        b_score = tl.load(p_score + o_v, mask=m_v, other=-float("inf"))
        best, best_id = best_of(b_score, tl.where(m_v, o_v, 0x7FFFFFFF), best, best_id)
    best_id = tl.minimum(best_id, vocab - 1)
    return best_id, order_key(tl.load(p_x + best_id))


@triton.jit
def mass_until(p_x, vocab, largest, temperature, key, last, BLOCK: tl.constexpr):
    """Mass of the tokens up to (key, last) in the order, int64."""
    total = tl.zeros([], tl.int64)
    for start in range(0, vocab, BLOCK):
        o_v = start + tl.arange(0, BLOCK)
        m_v = o_v < vocab
        b_x = tl.load(p_x + o_v, mask=m_v, other=-float("inf"))
        b_mass = mass(tl.div_rn(b_x - largest, temperature))
        total += tl.sum(tl.where(m_v & kept(order_key(b_x), o_v, key, last), b_mass, 0), 0)
    return total


@triton.jit
def pick_kernel(
    logits, part_best, part_id, part_score, score_id, temperatures, top_ks, top_ps, scores, tokens, largest_out,
    vocab, spans, BLOCK: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """One row: the best logit, the best score, or the best score that top_k and top_p leave."""
    i_n = tl.program_id(0).to(tl.int64)
    largest, token = row_best(part_best, part_id, i_n, spans, SPANS)
    tl.store(largest_out + i_n, largest)
    temperature = tl.load(temperatures + i_n)
    if (temperature > 0) & is_finite(largest):
        top_k = tl.load(top_ks + i_n)
        top_p = tl.load(top_ps + i_n)
        p_x = logits + i_n * vocab
        p_score = scores + i_n * vocab
        if (top_k == 0) & (top_p >= 1):
            _, token = row_best(part_score, score_id, i_n, spans, SPANS)
        else:
            key = -0x7FFFFFFF
            last = vocab
            if (top_k > 0) & (top_k < vocab):
                key, last = cutoff(p_x, vocab, top_k, BLOCK)
            token, token_key = winner_of(p_x, p_score, vocab, key, last, BLOCK)
            if top_p < 1:
                limit = mass_until(p_x, vocab, largest, temperature, key, last, BLOCK).to(tl.float64) * top_p
                before = mass_until(p_x, vocab, largest, temperature, token_key, token - 1, BLOCK)
                while (before > 0) & (before.to(tl.float64) >= limit):
                    # the winner is outside, and so is all that comes after it: the best of those before it is tried
                    token, token_key = winner_of(p_x, p_score, vocab, token_key, token - 1, BLOCK)
                    before = mass_until(p_x, vocab, largest, temperature, token_key, token - 1, BLOCK)
    tl.store(tokens + i_n, token.to(tl.int64))


@functools.cache
def _builds(spans: int) -> tuple[Build, Build, Build]:
    # fusing a product and a sum would round once where the reference rounds twice
    parts = {"logits": "*fp32", "part_best": "*fp32", "part_id": "*i32"}
    draws = {"temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp64", "scores": "*fp32"}
    draws |= {"part_score": "*fp32", "score_id": "*i32"}
    span = {"SPANS": triton.next_power_of_2(spans)}
    return (
        Build(kernel=maximum_kernel, types=parts, constants={"BLOCK": BLOCK, "SPAN": SPAN}, fusion=False),
        Build(
            kernel=score_kernel,
            types=parts | draws | {"seeds": "*i32", "positions": "*i32", "log_min_ps": "*fp64"},
            constants={"BLOCK": BLOCK, "SPAN": SPAN} | span,
            num_warps=8,
            fusion=False,
        ),
        Build(
            kernel=pick_kernel,
            types=parts | draws | {"tokens": "*i64", "largest_out": "*fp32"},
            constants={"BLOCK": PICK_BLOCK} | span,
            num_warps=16,
            fusion=False,
        ),
    )


def configs() -> list[Build]:
    """The builds for a vocabulary of 129,280."""
    return list(_builds(triton.cdiv(129_280, SPAN)))


def sample_tokens(logits_NV: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token for each row: (ids [N] int64, largest logits [N] float32).

    logits: [N, V] float32, contiguous, V at most 2^18. Where the largest logit is not finite (NaN, or all is forbidden)
    nothing can be chosen, and the id means nothing: the caller looks at both together, after one copy to the host.
    """
    num_rows, vocab = logits_NV.shape
    assert vocab <= MAX_VOCAB and logits_NV.dtype == torch.float32 and logits_NV.is_contiguous()
    spans = triton.cdiv(vocab, SPAN)
    maximum, score, pick = _builds(spans)
    device = logits_NV.device
    part_best, part_score = (torch.empty(num_rows, spans, dtype=torch.float32, device=device) for _ in range(2))
    part_id, score_id = (torch.empty(num_rows, spans, dtype=torch.int32, device=device) for _ in range(2))
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    largest = torch.empty(num_rows, dtype=torch.float32, device=device)
    scores = torch.empty_like(logits_NV) if draws.filtered else logits_NV
    parts = {"logits": logits_NV, "part_best": part_best, "part_id": part_id, "vocab": vocab}
    asked = {
        "temperatures": draws.temperature, "top_ks": draws.top_k, "top_ps": draws.top_p, "scores": scores,
        "part_score": part_score, "score_id": score_id,
    }  # fmt: skip
    maximum.launch((num_rows, spans), **parts)
    score.launch(
        (num_rows, spans), **parts, **asked,
        seeds=draws.seeds, positions=draws.positions, log_min_ps=draws.log_min_p,
    )  # fmt: skip
    pick.launch((num_rows,), **parts, **asked, tokens=tokens, largest_out=largest, spans=spans)
    return tokens, largest
