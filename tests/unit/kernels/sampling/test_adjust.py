"""Penalties, bias, forbidden tokens and masks against the reference, bit by bit."""

import pytest
import torch

from kernels.sampling import reference
from kernels.sampling.adjust import adjust_
from kernels.sampling.rows import Adjustments
from kernels.testing.compare import assert_same_bits
from kernels.testing.shapes import generator

VOCAB = 9001


def adjustments(device):
    """Four of six rows: all penalties over many tokens, bias on a token that was seen, a mask, and nothing at all."""
    random = generator()
    masks = torch.randint(-(2**31), 2**31, (2, -(-VOCAB // 32)), generator=random, dtype=torch.int64)
    seen = torch.randperm(VOCAB, generator=random)[:1500]
    counts = torch.randint(0, 4, (1500,), generator=random).float()

    def integers(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    def numbers(*values):
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Adjustments(
        rows=integers(5, 0, 2, 3),
        seen_start=integers(0, 1400, 1400, 1500, 1500),
        seen_ids=seen.to(device, torch.int32),
        seen_counts=counts.to(device),
        repetition=numbers(1.3, 1.0, 1.2e-38, 1.0),
        presence=numbers(0.4, 0.0, 0.1, 0.0),
        frequency=numbers(0.7, 0.0, -0.3, 0.0),
        bias_start=integers(0, 2, 4, 4, 4),
        bias_ids=integers(int(seen[0]), 17, 0, VOCAB - 1),
        bias_values=numbers(3.5, -100.0, 100.0, 1.25),
        forbidden_start=integers(0, 1, 1, 3, 3),
        forbidden_ids=integers(int(seen[1]), 1, VOCAB - 1),
        mask_rows=integers(-1, 1, 0, -1),
        masks=masks.to(device, torch.int32),
    )


# a penalty near 0 overflows before it is clamped, of which numpy warns where the kernel is interpreted
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_rows_change_as_the_reference_s(device):
    logits = (torch.randn(6, VOCAB, generator=generator(3)) * 4).to(device)
    asked = adjustments(device)
    expected = logits.clone()
    reference.adjust_(expected, asked)
    found = logits.clone()
    adjust_(found, asked)
    assert_same_bits(found, expected)
    untouched = [1, 3, 4]
    assert_same_bits(found[untouched], logits[untouched], what="rows that ask for nothing")
    assert not torch.equal(found, logits)
    assert bool(found[2].isneginf().any()) and bool((found[2] == torch.finfo(torch.float32).max).any())
    again = logits.clone()
    adjust_(again, asked)
    assert_same_bits(again, found, what="rerun")
