"""The kernels' tokens are the reference's: every filter, ties at every border, rows that leave nothing to choose."""

import math

import pytest
import torch

from kernels.sampling import noise, reference
from kernels.sampling.device import gumbel, mass
from kernels.sampling.rows import Draws
from kernels.sampling.sample import sample_tokens
from kernels.testing.compare import assert_same_bits
from kernels.testing.shapes import generator

triton = pytest.importorskip("triton")
tl = triton.language

# temperature, top_k, top_p, min_p
PLAIN = (1.0, 0, 1.0, 0.0)
ROWS = [
    (0.0, 0, 1.0, 0.0),
    PLAIN,
    (0.7, 50, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.5, 40, 0.5, 0.0),
    (1.0, 0, 1.0, 0.1),
    (2.0, 100, 0.8, 0.05),
    (1.0, 1, 1.0, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (30.0, 0, 0.3, 0.0),
]


def draws(rows, device, *, seed=0):
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    seeds = [noise.seed_words(2**40 * (seed + i)) for i in range(len(rows))]
    return Draws(
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int32, device=device),
        top_p=torch.tensor(top_p, dtype=torch.float64, device=device),
        log_min_p=torch.tensor([math.log(p) if p else -math.inf for p in min_p], dtype=torch.float64, device=device),
        seeds=torch.tensor(seeds, dtype=torch.int32, device=device),
        positions=torch.arange(5, 5 + len(rows), dtype=torch.int32, device=device),
        filtered=any(k or p < 1 for k, p in zip(top_k, top_p, strict=True)),
    )


@pytest.mark.parametrize(("vocab", "whole"), [(4500, True), (130, False), (1, False)])
def test_tokens_of_every_filter(device, vocab, whole):
    logits = torch.randn(len(ROWS), vocab, generator=generator(vocab)) * 2
    # whole numbers: equal logits at every border, and zeros of both signs
    logits = (logits.round() if whole else logits).to(device)
    asked = draws(ROWS, device, seed=vocab)
    tokens, largest = sample_tokens(logits, asked)
    expected, expected_largest = reference.sample_tokens(logits, asked)
    assert_same_bits(tokens, expected, what="tokens")
    assert torch.equal(largest, expected_largest)


@pytest.mark.slow
def test_many_draws_of_one_row(device):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.0, -0.0, float("-inf"), 1.5]], device=device).repeat(8, 1)
    asked = draws([(1.0, 0, 0.8, 0.0)] * 4 + [(1.3, 5, 0.9, 0.0)] * 4, device, seed=77)
    tokens, _ = sample_tokens(logits, asked)
    assert_same_bits(tokens, reference.sample_tokens(logits, asked)[0])
    assert len(set(tokens.tolist())) > 1
    assert_same_bits(sample_tokens(logits, asked)[0], tokens, what="rerun")


def test_rows_without_a_choice_say_so_and_leave_the_others_alone(device):
    logits = torch.randn(4, 300, generator=generator()).to(device)
    logits[0, 7] = float("nan")
    logits[1, 299] = float("inf")
    logits[2] = float("-inf")
    asked = draws([PLAIN, (1.0, 5, 0.5, 0.0), (1.0, 5, 0.5, 0.0), PLAIN], device)
    tokens, largest = sample_tokens(logits, asked)
    assert largest[0].isnan() and largest[1] == math.inf and largest[2] == -math.inf
    assert int(tokens[3]) == int(reference.sample_tokens(logits, asked)[0][3])


def test_another_seed_or_position_gives_other_tokens(device):
    logits = torch.zeros(4, 4000, device=device)
    first = draws([PLAIN] * 4, device)
    tokens, _ = sample_tokens(logits, first)
    assert len(set(tokens.tolist())) == 4
    other = draws([PLAIN] * 4, device, seed=1)
    assert set(sample_tokens(logits, other)[0].tolist()) != set(tokens.tolist())


@triton.jit
def probe(keys, ids, logits, noise_out, mass_out, SIZE: tl.constexpr):
    """Noise and mass of one row."""
    o = tl.arange(0, SIZE)
    tl.store(noise_out + o, gumbel(tl.load(keys), tl.load(keys + 1), tl.load(ids + o)))
    tl.store(mass_out + o, mass(tl.load(logits + o)))


def test_noise_and_mass_bit_by_bit(device):
    size = 4096
    keys = noise.row_keys(
        torch.tensor([noise.seed_words(2**63 + 11)], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    )
    ids = torch.arange(size, dtype=torch.int32) * 31
    logits = -torch.rand(size, generator=generator()) * 30
    found, masses = torch.empty(size, device=device), torch.empty(size, dtype=torch.int64, device=device)
    probe[(1,)](keys.to(device), ids.to(device), logits.to(device), found, masses, SIZE=size)
    assert_same_bits(found.cpu(), noise.gumbel_noise(keys, ids[None])[0], what="noise")
    expected = (logits.double().exp() / reference.MASS_STEP).round().long()
    assert_same_bits(masses.cpu(), expected, what="mass")
