"""Logits changed before the choice: penalties, bias, forbidden tokens and grammar masks, in place, in one launch.

Legend: R rows that change, V vocabulary, S spans, W = V / 32 words of a bitmask, K entries of all rows together.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from kernels.builds import Build
from kernels.sampling.rows import Adjustments

BLOCK = 1024
SPAN = 8192


@triton.jit
def adjust_kernel(
    logits, rows, seen_start, seen_ids, seen_counts, repetitions, presences, frequencies, bias_start, bias_ids,
    bias_values, forbidden_start, forbidden_ids, mask_rows, masks, vocab, words,
    BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """A program owns one span of one row: no other touches it, so that the steps follow each other."""
    i_r = tl.program_id(0)
    low = tl.program_id(1) * SPAN
    high = tl.minimum(low + SPAN, vocab)
    p_x = logits + tl.load(rows + i_r).to(tl.int64) * vocab
    o_k = tl.arange(0, BLOCK)
    repetition = tl.load(repetitions + i_r)
    presence = tl.load(presences + i_r)
    frequency = tl.load(frequencies + i_r)
    for start in range(tl.load(seen_start + i_r), tl.load(seen_start + i_r + 1), BLOCK):
        m_k = start + o_k < tl.load(seen_start + i_r + 1)
        b_id = tl.load(seen_ids + start + o_k, mask=m_k, other=-1)
        m_k = m_k & (b_id >= low) & (b_id < high)
        b_count = tl.load(seen_counts + start + o_k, mask=m_k, other=0.0)
        b_x = tl.load(p_x + b_id, mask=m_k, other=0.0)
        b_x = tl.where(b_x > 0, tl.div_rn(b_x, repetition), b_x * repetition)
        b_x -= frequency * b_count + tl.where(b_count > 0, presence, 0.0)
        # a penalty near 0 would lift a logit to infinity, which has no probability
        tl.store(p_x + b_id, tl.minimum(b_x, 3.4028234663852886e38), mask=m_k)
    tl.debug_barrier()
    for start in range(tl.load(bias_start + i_r), tl.load(bias_start + i_r + 1), BLOCK):
        m_k = start + o_k < tl.load(bias_start + i_r + 1)
        b_id = tl.load(bias_ids + start + o_k, mask=m_k, other=-1)
        m_k = m_k & (b_id >= low) & (b_id < high)
        b_x = tl.load(p_x + b_id, mask=m_k, other=0.0) + tl.load(bias_values + start + o_k, mask=m_k, other=0.0)
        tl.store(p_x + b_id, b_x, mask=m_k)
    tl.debug_barrier()
    for start in range(tl.load(forbidden_start + i_r), tl.load(forbidden_start + i_r + 1), BLOCK):
        m_k = start + o_k < tl.load(forbidden_start + i_r + 1)
        b_id = tl.load(forbidden_ids + start + o_k, mask=m_k, other=-1)
        tl.store(p_x + b_id, -float("inf"), mask=m_k & (b_id >= low) & (b_id < high))
    i_mask = tl.load(mask_rows + i_r)
    if i_mask >= 0:
        for start in range(low, high, BLOCK):
            o_v = start + o_k
            b_word = tl.load(masks + i_mask.to(tl.int64) * words + o_v // 32, mask=o_v < high, other=0)
            tl.store(p_x + o_v, -float("inf"), mask=(o_v < high) & (((b_word >> (o_v % 32)) & 1) == 0))


@functools.cache
def _build() -> Build:
    integers = ("rows", "seen_start", "seen_ids", "bias_start", "bias_ids", "forbidden_start", "forbidden_ids")
    numbers = ("logits", "seen_counts", "repetitions", "presences", "frequencies", "bias_values")
    return Build(
        kernel=adjust_kernel,
        types=dict.fromkeys((*integers, "mask_rows", "masks"), "*i32") | dict.fromkeys(numbers, "*fp32"),
        constants={"BLOCK": BLOCK, "SPAN": SPAN},
        # a product and a sum are rounded each, as the reference does
        fusion=False,
    )


def configs() -> list[Build]:
    """The one build."""
    return [_build()]


def adjust_(logits_NV: torch.Tensor, adjustments: Adjustments) -> None:
    """Change logits [N, V] float32, contiguous, in place: penalties, then bias, then what is forbidden or masked."""
    assert logits_NV.dtype == torch.float32 and logits_NV.is_contiguous()
    vocab = logits_NV.shape[1]
    a = adjustments
    _build().launch(
        (a.rows.shape[0], triton.cdiv(vocab, SPAN)),
        logits=logits_NV, rows=a.rows, seen_start=a.seen_start, seen_ids=a.seen_ids, seen_counts=a.seen_counts,
        repetitions=a.repetition, presences=a.presence, frequencies=a.frequency, bias_start=a.bias_start,
        bias_ids=a.bias_ids, bias_values=a.bias_values, forbidden_start=a.forbidden_start,
        forbidden_ids=a.forbidden_ids, mask_rows=a.mask_rows, masks=a.masks, vocab=vocab, words=a.masks.shape[1],
    )  # fmt: skip
