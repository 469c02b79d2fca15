"""Exact top-k against the reference: every kind of row, cut into chunks or whole, and the same on every run."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.dsa import paged_reference
from kernels.dsa.topk import CHUNK, MOST_POSITIONS, topk
from kernels.testing.compare import assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import KEY_COUNTS, block_table, generator


def normal(width, seed=0):
    return torch.randn(width, generator=generator(seed))


def ones_apart(width):
    """Neighbouring floats, in no order."""
    order = torch.randperm(width, generator=generator()).to(torch.int32)
    return (order + 0x3F800000).view(torch.float32)


KINDS = {
    "normal": normal,
    "negative": lambda width: -normal(width).abs() - 1,
    "equal": lambda width: torch.full((width,), 0.25),
    "two values": lambda width: (normal(width) > 1.0).float(),
    "zeros of both signs": lambda width: torch.where(normal(width) > 0, 0.0, -0.0),
    "an outlier": lambda width: torch.cat((torch.full((width - 1,), 1e-3), torch.tensor([3e38]))),
    "one ulp apart": ones_apart,
    "denormal": lambda width: normal(width) * 1e-42,
    "minus infinity but for a few": lambda width: torch.where(normal(width) > 1.5, normal(width), -torch.inf),
    "infinities": lambda width: torch.where(normal(width) > 0, torch.inf, -torch.inf),
    "NaN among them": lambda width: torch.where(normal(width, 1) > 0.5, torch.nan, normal(width)),
    "NaN only": lambda width: torch.full((width,), torch.nan),
    "ties at the cutoff": lambda width: torch.where(normal(width) > 2.0, 5.0, 1.0),
}


def check(rows, lengths, k, device):
    logits_RS = torch.stack(rows)
    lengths_R = torch.tensor(lengths, dtype=torch.int32)
    got = topk(logits_RS.to(device), lengths_R.to(device), k)
    assert_same_bits(got, paged_reference.topk_rows(logits_RS, lengths_R, k).to(device))
    return got


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row(device, kind):
    check([KINDS[kind](3000)], [3000], 2048, device)


@pytest.mark.parametrize("kind", ["normal", "equal", "ties at the cutoff", "NaN among them", "negative"])
def test_rows_in_chunks(device, kind):
    width = 2 * CHUNK + 700
    row = KINDS[kind](width)
    lengths = [width, CHUNK + 1, CHUNK, 2048]
    got = check([row] * 4, lengths, 2048, device)
    assert_same_bits(topk(row[None].to(device), torch.tensor([width], dtype=torch.int32, device=device), 2048), got[:1])


@pytest.mark.parametrize("k", [1, 64, 2048])
def test_lengths_at_which_rows_end(device, k):
    lengths = [*KEY_COUNTS, -7, 2047, 2048, 2049, 4096, 9999]
    check([normal(4096, seed) for seed in range(len(lengths))], lengths, k, device)


def test_the_longest_context(device):
    check([normal(163840)], [163840 - 5], 2048, device)


def test_rows_far_apart_and_rows_that_share_memory(device):
    logits = sparse((3, 100), (2**30 + 2**29, 1), torch.float32, device)
    for row in range(3):
        logits[row] = normal(100, row).to(device)
    near, lengths = logits.contiguous(), torch.full((3,), 100, dtype=torch.int32, device=device)
    assert_same_bits(topk(logits, lengths, 10), paged_reference.topk_rows(near, lengths, 10))


def test_slots_through_a_block_table(device):
    lengths = [0, 1, 65, 640]
    table, _ = block_table(lengths)
    apart = torch.full((4, table.shape[1] + 5), -1, dtype=torch.int32)
    apart[:, : table.shape[1]] = table
    sequences = torch.tensor([3, 1, 0, 2, 3], dtype=torch.int32)
    seen = torch.tensor([lengths[sequence] for sequence in sequences], dtype=torch.int32)
    logits = torch.stack([normal(1000, seed) for seed in range(5)])
    narrow = apart.to(device)[:, : table.shape[1]]
    got = topk(logits.to(device), seen.to(device), 100, block_table_BP=narrow, sequences_R=sequences.to(device))
    expected = paged_reference.slots_of(paged_reference.topk_rows(logits, seen, 100), table, sequences)
    assert_same_bits(got, expected.to(device))
    assert bool((got[2] == -1).all()) and int((got[0] >= 0).sum()) == 100


def test_no_rows(device):
    none = torch.zeros(0, dtype=torch.int32, device=device)
    assert topk(torch.zeros(0, 40000, device=device), none, 2048).shape == (0, 2048)
    assert bool(
        (topk(torch.zeros(2, 0, device=device), torch.ones(2, dtype=torch.int32, device=device), 3) == -1).all()
    )


def test_arguments_that_do_not_fit_are_refused(device):
    logits, lengths = torch.zeros(2, 10, device=device), torch.zeros(2, dtype=torch.int32, device=device)
    for k in (0, 2049):
        with pytest.raises(ValueError, match=f"1 to 2048 positions, not {k}"):
            topk(logits, lengths, k)
    with pytest.raises(ValueError, match=f"rows of up to {MOST_POSITIONS} logits, not {MOST_POSITIONS + 1}"):
        topk(torch.zeros(1, 1, device=device).expand(1, MOST_POSITIONS + 1), lengths, 1)
    with pytest.raises(ValueError, match="or neither"):
        topk(logits, lengths, 1, sequences_R=lengths)
    with pytest.raises(ValueError, match=r"lengths is \(2,\) torch.int64"):
        topk(logits, lengths.long(), 1)
    with pytest.raises(ValueError, match=r"logits is .*bfloat16"):
        topk(logits.bfloat16(), lengths, 1)
