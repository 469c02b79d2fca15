"""Index logits over pages against float64, at the counts of keys and rows where kernels go wrong."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.cache.layout import quantise_index_vectors, write_index_keys
from kernels.dsa import paged_reference
from kernels.dsa.logits import PAGE_BYTES, index_logits_decode, index_logits_prefill
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import KEY_COUNTS, block_table, generator

HEADS, WIDTH = 64, 128


def make_pages(num_pages, device, *, seed=1):
    """Pages full of keys."""
    pages = torch.zeros(num_pages, PAGE_BYTES, dtype=torch.uint8)
    keys = torch.randn(num_pages * 64, WIDTH, generator=generator(seed))
    write_index_keys(pages, torch.arange(num_pages * 64), keys)
    return pages.to(device)


def make_queries(rows, device, *, seed=2):
    """(q [rows, 64, 128] float8, weights [rows, 64]); some weights are negative."""
    q, scales = quantise_index_vectors(torch.randn(rows, HEADS, WIDTH, generator=generator(seed)))
    weights = torch.randn(rows, HEADS, generator=generator(seed + 1)) * scales * HEADS**-0.5 * WIDTH**-0.5
    return q.to(device), weights.to(device)


def check(out, expected, lengths, *, relative=2e-6):
    """Positions below a row's length are right; the poison past it is untouched."""
    for row, length in enumerate(lengths):
        length = max(0, min(length, out.shape[1]))
        bound = relative * float(expected[row, :length].abs().max()) if length else 0.0
        assert_close(out[row, :length], expected[row, :length], absolute=bound, what=f"row {row}")
        assert bool(out[row, length:].isnan().all()), f"row {row} was written past its length {length}"


def decode(queries, lengths, device):
    """(out, expected, lengths by row) of a decode step whose sequences have `lengths` keys."""
    table, num_pages = block_table(lengths)
    pages, table = make_pages(num_pages, device), table.to(device)
    q, weights = make_queries(len(lengths) * queries, device)
    seen = [max(length - queries + 1 + j, 0) for length in lengths for j in range(queries)]
    seen_R = torch.tensor(seen, dtype=torch.int32, device=device)
    out = torch.empty(len(seen), table.shape[1] * 64, dtype=torch.float32, device=device)
    shape = (len(lengths), queries)
    index_logits_decode(q.unflatten(0, shape), weights.unflatten(0, shape), pages, table, seen_R.view(shape), out)
    sequences = torch.arange(len(lengths)).repeat_interleave(queries).to(torch.int32)
    return out, paged_reference.index_logits(q, weights, pages, table, sequences, seen_R, out.shape[1]), seen


@pytest.mark.parametrize("queries", [1, 2, 3, 4])
def test_decode(device, queries):
    out, expected, seen = decode(queries, [*KEY_COUNTS, 300], device)
    check(out, expected, seen)
    again, _, _ = decode(queries, [*KEY_COUNTS, 300], device)
    assert_same_bits(again, out)


def test_prefill_of_ragged_rows_whose_groups_cross_sequences(device):
    lengths = [1, 2, 3, 63, 64, 65, 0, 130, 131, -5, 70, 71, 72]
    sequences = [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4]
    table, num_pages = block_table([3, 65, 0, 131, 72])
    pages, table = make_pages(num_pages, device), table.to(device)
    q, weights = make_queries(len(lengths), device)
    lengths_R, sequences_R = (torch.tensor(x, dtype=torch.int32, device=device) for x in (lengths, sequences))
    wide = torch.empty(len(lengths), 200, dtype=torch.float32, device=device)
    out = wide[:, :150]  # narrower than its rows are apart, and no multiple of a page
    index_logits_prefill(q, weights, pages, table, sequences_R, lengths_R, out)
    check(out, paged_reference.index_logits(q, weights, pages, table, sequences_R, lengths_R, 150), lengths)
    assert bool(wide[:, 150:].isnan().all())


def test_unwritten_pages_and_keys_past_the_length_do_not_matter(device):
    table, num_pages = block_table([70])
    pages = make_pages(num_pages, device)
    unused = [page for page in range(num_pages) if page not in table[0].tolist()]
    pages[unused] = 0xFF
    keys = pages[int(table[0, 1])]
    keys[6 * WIDTH : 64 * WIDTH] = 0x7F  # NaN from the key past the last on
    keys[64 * WIDTH + 6 * 4 :] = 0xFF
    q, weights = make_queries(1, device)
    lengths = torch.tensor([[70]], dtype=torch.int32, device=device)
    out = torch.empty(1, 128, dtype=torch.float32, device=device)
    index_logits_decode(q[:, None], weights[:, None], pages, table.to(device), lengths, out)
    sequences = torch.zeros(1, dtype=torch.int32)
    check(out, paged_reference.index_logits(q, weights, pages, table, sequences, lengths[0], 128), [70])


def test_no_rows_and_no_pages(device):
    pages = make_pages(1, device)
    q, weights = make_queries(0, device)
    table = torch.zeros(0, 3, dtype=torch.int32, device=device)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    out = torch.empty(0, 192, dtype=torch.float32, device=device)
    index_logits_prefill(q, weights, pages, table, none, none, out)
    q, weights = make_queries(1, device)
    one = torch.zeros(1, 0, dtype=torch.int32, device=device)
    lengths = torch.ones(1, 1, dtype=torch.int32, device=device)
    out = torch.empty(1, 0, dtype=torch.float32, device=device)
    index_logits_decode(q[:, None], weights[:, None], pages, one, lengths, out)


def test_arguments_that_do_not_fit_are_refused(device):
    pages, table = make_pages(1, device), torch.zeros(1, 1, dtype=torch.int32, device=device)
    q, weights = make_queries(5, device)
    out, lengths = torch.empty(5, 64, device=device), torch.ones(1, 5, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="1 to 4 queries a sequence, not 5"):
        index_logits_decode(q[None], weights[None], pages, table, lengths, out)
    with pytest.raises(ValueError, match=r"the block table has 1 rows for 5 sequences"):
        index_logits_decode(q[:, None], weights[:, None], pages, table, lengths.t(), out)
    rows = lengths[0]
    with pytest.raises(ValueError, match=r"q is .*float32.*expected \(5, 64, 128\) torch.float8_e4m3fn"):
        index_logits_prefill(q.float(), weights, pages, table, rows, rows, out)
    with pytest.raises(ValueError, match=r"out is .*strides \(1, 5\)"):
        index_logits_prefill(q, weights, pages, table, rows, rows, torch.empty(64, 5, device=device).t())


def test_offsets_beyond_int32(device):
    """Page 300,000 begins past 2**31 bytes, and row 2 of the logits past 2**31 elements."""
    pages = sparse((300_001, PAGE_BYTES), (PAGE_BYTES, 1), torch.uint8, device)
    few = make_pages(3, device)
    for place, page in enumerate((300_000, 17, 260_000)):
        pages[page] = few[place]
    near = torch.tensor([[0], [1], [2]], dtype=torch.int32, device=device)
    far = torch.tensor([[300_000], [17], [260_000]], dtype=torch.int32, device=device)
    q, weights = make_queries(3, device)
    lengths = torch.full((3, 1), 64, dtype=torch.int32, device=device)
    out = sparse((3, 64), (2**30 + 2**29, 1), torch.float32, device)
    index_logits_decode(q[:, None], weights[:, None], pages, far, lengths, out)
    expected = paged_reference.index_logits(q, weights, few, near, torch.arange(3), lengths[:, 0], 64)
    assert_close(out, expected, absolute=2e-6 * float(expected.abs().max()))


def test_the_bound_is_not_empty(device):
    out, expected, seen = decode(1, [65], device)
    check(out, expected, seen)
    with pytest.raises(AssertionError, match=r"row 0: .* elements are wrong"):
        check(out * 1.00001, expected, seen)
    with pytest.raises(AssertionError, match="row 0 was written past its length 64"):
        check(out, expected, [64])
