"""The gate against the golden case and a plain loop; grouped experts against one expert at a time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.moe import reference as moe
from tests.support.golden import golden


def test_gate_matches_the_golden_case():
    expected = golden("primitives")["gate"]
    ids, weights = moe.choose_experts(
        torch.tensor(expected["logits"]).sigmoid()[None],
        torch.tensor(expected["bias"]),
        experts_per_token=8,
        num_groups=8,
        topk_groups=4,
        normalise=True,
        scaling=2.5,
    )
    order = ids[0].argsort()
    assert ids[0][order].tolist() == expected["experts"]
    assert (weights[0][order] - torch.tensor(expected["weights"])).abs().max() < 1e-6


def gate_by_hand(scores, bias, per_token, groups, kept_groups, normalise, scaling):
    """The gate for one token with Python lists."""
    size = len(scores) // groups
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    strength = {g: sum(sorted(biased[g * size : (g + 1) * size])[-2:]) for g in range(groups)}
    kept = sorted(strength, key=strength.__getitem__)[-kept_groups:]
    candidates = [e for e in range(len(scores)) if e // size in kept]
    chosen = sorted(candidates, key=lambda e: biased[e])[-per_token:]
    total = sum(scores[e] for e in chosen) if normalise else 1.0
    return {e: scores[e] / total * scaling for e in chosen}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]), st.booleans())
def test_gate_matches_a_plain_loop(seed, grouping, normalise):
    groups, kept = grouping
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, 16, generator=generator)
    # biases below -1 make every biased score negative: a mask of zero instead of minus infinity would win
    bias = torch.randn(16, generator=generator) - 3
    ids, weights = moe.choose_experts(
        scores, bias, experts_per_token=3, num_groups=groups, topk_groups=kept, normalise=normalise, scaling=1.5
    )
    for token in range(3):
        expected = gate_by_hand(scores[token].tolist(), bias.tolist(), 3, groups, kept, normalise, 1.5)
        found = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert all(abs(found[e] - expected[e]) < 1e-6 for e in expected)


def test_grouped_mlp_is_each_experts_mlp_and_skips_empty_ones():
    generator = torch.Generator().manual_seed(3)
    gate_up, down = torch.randn(4, 12, 8, generator=generator), torch.randn(4, 8, 6, generator=generator)
    counts = (3, 0, 1, 2)
    x = torch.randn(6, 8, generator=generator)
    y = moe.grouped_mlp(x, counts, gate_up, down)
    experts = [0, 0, 0, 2, 3, 3]
    for row, expert in enumerate(experts):
        hidden = gate_up[expert].double() @ x[row].double()
        inner = torch.nn.functional.silu(hidden[:6]) * hidden[6:]
        assert (y[row] - down[expert].double() @ inner).abs().max() < 1e-4
    assert moe.grouped_mlp(x[:0], (0, 0, 0, 0), gate_up, down).shape == (0, 8)
