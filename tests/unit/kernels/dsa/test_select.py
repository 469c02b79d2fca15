"""Selection some rows at a time gives the slots that all logits at once give."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.dsa import paged_reference
from kernels.dsa.logits import PAGE_BYTES, index_logits_prefill
from kernels.dsa.select import rows_at_a_time, select_decode, select_prefill
from kernels.testing.compare import assert_same_bits
from kernels.testing.shapes import block_table, generator


def inputs(rows, lengths, device):
    """(q, weights, pages, table): pages of random finite numbers, for sequences of `lengths`."""
    table, num_pages = block_table(lengths)
    pages = torch.randint(0, 0x7F, (num_pages, PAGE_BYTES), dtype=torch.uint8, generator=generator())
    pages[:, 64 * 128 :] = torch.rand(num_pages, 64, generator=generator()).view(torch.uint8)
    q = torch.randn(rows, 64, 128, generator=generator()).to(torch.float8_e4m3fn)
    weights = torch.randn(rows, 64, generator=generator())
    return tuple(x.to(device) for x in (q, weights, pages, table))


def test_prefill_in_parts(device):
    lengths, sequences = [1, 70, 71, 72, 130], [0, 1, 1, 1, 2]
    q, weights, pages, table = inputs(5, [1, 72, 130], device)
    lengths_R, sequences_R = (torch.tensor(x, dtype=torch.int32, device=device) for x in (lengths, sequences))
    arguments = q, weights, pages, table, sequences_R, lengths_R
    logits = torch.empty(5, 192, dtype=torch.float32, device=device)
    index_logits_prefill(*arguments, logits)
    expected = paged_reference.slots_of(paged_reference.topk_rows(logits, lengths_R, 50), table, sequences_R)
    for workspace in (1, 2 * 192 * 4, 2**20):
        assert_same_bits(select_prefill(*arguments, 50, workspace_bytes=workspace), expected)
    assert_same_bits(select_prefill(*arguments, 50, longest=130), expected)


@pytest.mark.parametrize("queries", [1, 2])
def test_decode_in_parts(device, queries):
    lengths = [65, 0, 130]
    q, weights, pages, table = inputs(3 * queries, lengths, device)
    seen = torch.tensor([[max(n - queries + 1 + j, 0) for j in range(queries)] for n in lengths], dtype=torch.int32)
    sequences = torch.arange(3).repeat_interleave(queries).to(torch.int32).to(device)
    arguments = q, weights, pages, table, sequences, seen.flatten().to(device)
    expected = select_prefill(*arguments, 50)
    by_sequence = q.unflatten(0, (3, queries)), weights.unflatten(0, (3, queries)), pages, table, seen.to(device)
    for workspace in (1, 2**20):
        got = select_decode(*by_sequence, 50, workspace_bytes=workspace)
        assert_same_bits(got.sort(-1).values, expected.view(3, queries, 50).sort(-1).values)


def test_the_workspace_bounds_the_rows():
    assert rows_at_a_time(163840, 2**28, 2) == 408 and rows_at_a_time(163840, 1, 2) == 2
    assert 4 * 163840 * rows_at_a_time(163840, 2**28, 2) <= 2**28
