"""The parts of all ranks add up to what one rank with all experts gives, and to the reference."""

import pytest
import torch

from kernels.moe import reference
from kernels.quant.reference import quantise_activations
from kernels.quant.scaled import Scaled
from kernels.quant.weights import quantise_weight
from kernels.testing.compare import assert_close, assert_same_bits, difference
from kernels.testing.shapes import generator

EXPERTS, HIDDEN, INNER, TOKENS, CHOSEN = 8, 128, 128, 6, 3


def problem(device, *, float8):
    g = generator()
    x = torch.randn(TOKENS, HIDDEN, generator=g).bfloat16()
    ids = torch.stack([torch.randperm(EXPERTS, generator=g)[:CHOSEN] for _ in range(TOKENS)])
    weights = torch.rand(TOKENS, CHOSEN, generator=g)
    shapes = ((EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER))
    stored = [torch.randn(shape, generator=g) / shape[2] ** 0.5 for shape in shapes]
    if not float8:
        return Scaled(x.to(device)), ids, weights, [Scaled(w.bfloat16().to(device)) for w in stored]
    pairs = [zip(*(quantise_weight(one) for one in w), strict=True) for w in stored]
    matrices = [Scaled(*(torch.stack(parts).to(device) for parts in pair)) for pair in pairs]
    return Scaled(*(t.to(device) for t in quantise_activations(x, ue8m0=True))), ids, weights, matrices


def share(matrix, experts):
    return Scaled(
        *(None if t is None else t[experts.start : experts.stop].clone() for t in (matrix.values, matrix.scales))
    )


def packed(ids, weights, experts):
    """As dispatch sends them to one rank: only its own ids, and no weight for the others."""
    here = (ids >= experts.start) & (ids < experts.stop)
    return torch.where(here, ids, -1), torch.where(here, weights, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("float8", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 4])
def test_parts_add_up_to_the_layer(device, float8, num_ranks):
    from kernels.moe.rank import rank_answers

    x, ids, weights, matrices = problem(device, float8=float8)
    total = torch.zeros(TOKENS, HIDDEN)
    for rank in range(num_ranks):
        experts = range(rank * EXPERTS // num_ranks, (rank + 1) * EXPERTS // num_ranks)
        mine = [t.to(device) for t in packed(ids, weights, experts)]
        own = [share(matrix, experts) for matrix in matrices]
        part = rank_answers(x, *mine, experts, *own, expected_pairs=TOKENS, dtype=torch.float32)
        total += part.cpu()
        none = (packed(ids, weights, experts)[0] < 0).all(1)
        assert (part.cpu()[none] == 0).all()
    rows = [Scaled(m.values.cpu(), None if m.scales is None else m.scales.cpu()) for m in (x, *matrices)]
    expected = reference.combine_pairs(reference.expert_mlps(rows[0], ids, *rows[1:], copies=CHOSEN), weights)
    assert difference(total, expected) < 2e-5
    assert_close(total, expected, absolute=0.02)


def test_padding_rows_may_hold_anything(device):
    from kernels.moe.rank import rank_answers

    x, ids, weights, matrices = problem(device, float8=True)
    ids[4:], weights[4:] = -1, 0
    arguments = (ids.to(device), weights.to(device), range(EXPERTS), *matrices)
    clean = rank_answers(x, *arguments)
    x.scales[4:] = float("nan")
    x.values.view(torch.uint8)[4:] = 0x7F
    assert_same_bits(rank_answers(x, *arguments), clean)
    assert (clean[4:] == 0).all() and clean[:4].isfinite().all()


def test_what_is_refused(device):
    from kernels.moe.rank import rank_answers

    x, ids, weights, matrices = problem(device, float8=True)
    for wrong in ((ids[:2], weights[:2]), (ids, weights[:, :2])):
        with pytest.raises(AssertionError, match="ids"):
            rank_answers(x, *wrong, range(EXPERTS), *matrices)
