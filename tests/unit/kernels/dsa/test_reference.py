"""Indexer scores, exact top-k with its tie-break, and attention, against plain computations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cache.layout import quantise_index_vectors
from kernels.dsa import reference as dsa
from tests.support.golden import golden


def wave(count: int, step: float, phase: float) -> torch.Tensor:
    return torch.sin(0.01 * step * torch.arange(count, dtype=torch.float64) + phase).to(torch.bfloat16)


def test_index_scores_match_the_golden_values_exact_and_in_float8():
    expected = golden("primitives")["indexer"]
    q, k = wave(64 * 128, 2, 0.5).view(1, 64, 128), wave(12 * 128, 3, 1.0).view(12, 128)
    weights = torch.cos(0.4 * torch.arange(64, dtype=torch.float64)).float()[None] * 64**-0.5 * 128**-0.5
    exact = dsa.index_scores_shared(q.float(), weights, k.float(), None)[0]
    assert (exact - torch.tensor(expected["score_exact"])).abs().max() < 1e-6
    q8, q_scale = quantise_index_vectors(q)
    k8, k_scale = quantise_index_vectors(k)
    assert q_scale[0].tolist() == expected["q_scale"]
    assert k_scale.tolist() == expected["k_scale"]
    packed = dsa.index_scores_shared(q8.float(), weights * q_scale, k8.float(), k_scale)[0]
    assert (packed - torch.tensor(expected["score_fp8"])).abs().max() < 1e-6
    rows = dsa.index_scores(q8.float(), weights * q_scale, k8.float()[None], k_scale[None])[0]
    assert (packed - rows).abs().max() < 1e-6


def best_positions(scores: list[float], k: int) -> list[int]:
    """The k best by (score, lower position first)."""
    finite = [i for i, score in enumerate(scores) if score > -math.inf]
    return sorted(sorted(finite, key=lambda i: (-scores[i], i))[:k])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_topk_takes_the_lower_position_among_equals(data):
    k = data.draw(st.integers(1, 6))
    # few distinct values, so that ties at the cutoff are the rule
    rows = data.draw(
        st.lists(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 7.0]), min_size=12, max_size=12), min_size=1, max_size=3)
    )
    scores = torch.tensor(rows)
    mask = dsa.topk_mask(scores, k)
    positions = dsa.topk_positions(scores, k)
    for row in range(len(rows)):
        expected = best_positions(rows[row], k)
        assert mask[row].nonzero()[:, 0].tolist() == expected
        assert sorted(positions[row].tolist()) == expected


def test_a_hidden_key_is_never_selected():
    scores = torch.tensor([[-math.inf, 0.0, 0.0, -5.0, -math.inf, -math.inf]])
    assert dsa.topk_mask(scores, 3)[0].tolist() == [False, True, True, True, False, False]
    assert dsa.topk_mask(scores, 4)[0].tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("hide", [False, True])
def test_attention_matches_float64(hide):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 10, generator=generator)
    records = torch.randn(2, 7, 10, generator=generator)
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    if hide:
        hidden[0, 4:] = hidden[1, 2] = True
    out = dsa.attend_rows(q, records, 6, 0.3, hidden if hide else None)
    scores = torch.einsum("bhq,bsq->bhs", q.double(), records.double()) * 0.3
    scores = scores.masked_fill(hidden[:, None], -math.inf)
    exact = torch.einsum("bhs,bsv->bhv", scores.softmax(-1), records.double()[..., :6])
    assert (out - exact).abs().max() < 1e-6
    shared = dsa.attend_shared(
        q[0][:, None], records[0].expand(3, 7, 10), records[0, :, :6].expand(3, 7, 6), 0.3, hidden[:1]
    )
    assert (shared[:, 0] - exact[0]).abs().max() < 1e-6
