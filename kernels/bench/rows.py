"""Cases of what works row by row: norms, cache writes and queries, at DeepSeek-V3.2's widths.

Legend: T tokens, D width.
"""

from __future__ import annotations

import functools

import torch

from kernels.bench.case import Case, Trial
from kernels.cache import reference as cache_reference
from kernels.cache.layout import PAGE_TOKENS, index_page_bytes, latent_record_bytes
from kernels.cache.reference import KeyNorms, QueryLatent
from kernels.norm import reference as norm_reference
from kernels.testing.compare import assert_close

HIDDEN, QUERY, LATENT, ROPE, INDEX = 7168, 1536, 512, 64, 128
HEADS, NOPE, INDEX_HEADS = 128, 128, 64
TOKENS = (1, 64, 4096)
TINY = 3
EPS = 1e-6


def norm() -> list[Case]:
    """Residual, norm and float8 in one launch."""
    moved = HIDDEN * (2 * 4 + 1) + HIDDEN // 128 * 4
    return [
        Case(
            name=f"residual, float8, T={t}", moved_bytes=t * moved, prepare=functools.partial(_norm, t), tiny=t == TINY
        )
        for t in (TINY, *TOKENS)
    ]


def _norm(num_tokens: int, device: str) -> Trial:
    from kernels.norm.rms import Normed, rms_norm

    x, delta = (torch.randn(num_tokens, HIDDEN, device=device).to(torch.bfloat16) for _ in range(2))
    weight = torch.rand(HIDDEN, device=device) + 0.5

    def check(found: Normed) -> None:
        assert_close(found.normed, norm_reference.add_rms_norm(delta, x, weight, EPS)[0], relative=2**-7)

    return Trial(
        run=lambda: rms_norm(x, weight, EPS, delta_SD=delta, quantise=True),
        check=check,
        baseline=lambda: norm_reference.add_rms_norm(delta, x, weight, EPS),
        baseline_name="torch, without float8",
    )


def cache_write() -> list[Case]:
    """Query latent, packed record and index page."""
    read = (QUERY + LATENT + ROPE + INDEX) * 2 + ROPE * 4 + 8
    written = QUERY * 3 + QUERY // 128 * 4 + latent_record_bytes(LATENT, ROPE) + index_page_bytes(INDEX) // PAGE_TOKENS
    return [
        Case(
            name=f"packed, T={t}",
            moved_bytes=t * (read + written),
            prepare=functools.partial(_write, t),
            tiny=t == TINY,
        )
        for t in (TINY, *TOKENS)
    ]


def _write(num_tokens: int, device: str) -> Trial:
    from kernels.cache.write import write_cache

    x = torch.randn(num_tokens, QUERY + LATENT + ROPE + INDEX, device=device).to(torch.bfloat16)
    weights = [torch.rand(width, device=device) + 0.5 for width in (QUERY, LATENT, INDEX, INDEX)]
    norms = KeyNorms(weights[0], weights[1], weights[2], weights[3], EPS, EPS)
    num_pages = num_tokens // PAGE_TOKENS + 1
    slots = torch.randperm(num_pages * PAGE_TOKENS, device=device)[:num_tokens]
    records = torch.zeros(num_pages * PAGE_TOKENS, latent_record_bytes(LATENT, ROPE), dtype=torch.uint8, device=device)
    pages = torch.zeros(num_pages, index_page_bytes(INDEX), dtype=torch.uint8, device=device)
    arguments = x, norms, _turns(num_tokens, device), slots

    def check(found: QueryLatent) -> None:
        expected = torch.zeros_like(records), torch.zeros_like(pages)
        cache_reference.write_cache(*arguments, *expected, quantise=True)
        for got, wanted in zip((records, pages), expected, strict=True):
            assert int((got != wanted).sum()) <= 1 + num_tokens, "more than one byte a token differs"

    return Trial(
        run=lambda: write_cache(*arguments, records, pages, quantise=True),
        check=check,
        baseline=lambda: cache_reference.write_cache(*arguments, records, pages, quantise=True),
        baseline_name="torch, step by step",
    )


def queries() -> list[Case]:
    """Rotated main queries in place, index queries in float8."""
    moved = HEADS * ROPE * 4 + INDEX_HEADS * (INDEX * 3 + 8) + ROPE * 4
    return [
        Case(name=f"T={t}", moved_bytes=t * moved, prepare=functools.partial(_queries, t), tiny=t == TINY)
        for t in (TINY, *TOKENS)
    ]


def _queries(num_tokens: int, device: str) -> Trial:
    from kernels.cache.queries import prepare_queries

    q = torch.randn(num_tokens, HEADS * (NOPE + ROPE) + INDEX_HEADS * INDEX, device=device).to(torch.bfloat16)
    weights = torch.randn(num_tokens, INDEX_HEADS, device=device)
    turns = _turns(num_tokens, device)
    out, expected = (q.new_zeros(num_tokens, HEADS, LATENT + ROPE) for _ in range(2))
    sizes = {"num_heads": HEADS, "nope_dim": NOPE, "index_heads": INDEX_HEADS}

    def check(found: tuple[torch.Tensor, torch.Tensor]) -> None:
        _, head_weights = cache_reference.prepare_queries(q, weights, turns, expected, **sizes, weight_scale=0.01)
        assert_close(out, expected, relative=2**-7, absolute=1e-6)
        assert_close(found[1], head_weights, relative=1e-6)

    return Trial(
        run=lambda: prepare_queries(q, weights, turns, out, **sizes, weight_scale=0.01),
        check=check,
        baseline=lambda: cache_reference.prepare_queries(q, weights, turns, expected, **sizes, weight_scale=0.01),
        baseline_name="torch, step by step",
    )


def _turns(num_tokens: int, device: str) -> torch.Tensor:
    angles = torch.rand(num_tokens, ROPE // 2, device=device) * 6.28
    return torch.stack((angles.cos(), angles.sin()), dim=-1)
