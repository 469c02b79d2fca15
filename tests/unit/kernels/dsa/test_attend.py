"""Latent attention over slots and over pages against float64: both record formats, splits, holes, poisoned caches."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.cache.layout import pack_latent
from kernels.dsa import paged_reference
from kernels.dsa.attend import RECORD_BYTES, attend_paged, attend_selected, choose_splits
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.poison import sparse
from kernels.testing.shapes import KEY_COUNTS, block_table, generator

SCALE = 192**-0.5 * 1.8731  # about that of DeepSeek-V3.2
FORMATS = ("bfloat16", "float8")


def make_records(count, form, device, *, seed=1):
    """Records of normal numbers, in one of the two formats."""
    x = torch.randn(count, 576, generator=generator(seed))
    packed = pack_latent(x[:, :512], x[:, 512:]) if form == "float8" else x.to(torch.bfloat16)
    return packed.to(device)


def make_queries(rows, heads, device, *, seed=2):
    return torch.randn(rows, heads, 576, generator=generator(seed)).to(torch.bfloat16).to(device)


def check(result, q, records, slots):
    """Rounding of the weights and of the result to bfloat16 is all that may differ."""
    expected, log_sums = paged_reference.attend_slots(q.cpu(), records.cpu(), slots.cpu(), 512, SCALE)
    out, lse = result
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    assert_close(out, expected, absolute=4e-3, relative=2**-7, what="out")
    assert_close(lse, log_sums, absolute=2e-5, what="lse")


def rows_of_every_kind(num_slots, width):
    """Slots with holes at the end, in the middle and everywhere, past the cache, and of one record only."""
    order = torch.stack([torch.randperm(num_slots, generator=generator(seed))[:width] for seed in range(6)]).int()
    order[0, 65:] = -1
    order[1, torch.rand(width, generator=generator()) < 0.7] = -1
    order[2] = -1
    order[3, : width - 1] = -1
    order[4, 5:9] = num_slots
    return order


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("heads", "splits", "rows"), [pytest.param(128, 1, 6, marks=pytest.mark.slow), (128, 2, 1), (5, 1, 6), (17, 3, 3)]
)
def test_rows_with_holes(device, form, heads, splits, rows):
    slots = rows_of_every_kind(130, 100).to(device)[:rows]
    records, q = make_records(130, form, device), make_queries(rows, heads, device)
    result = attend_selected(q, records, slots, SCALE, splits=splits)
    check(result, q, records, slots.where(slots < 130, -1))
    assert bool((result[0][2:3] == 0).all()) and bool((result[1][2:3] == torch.inf).all())
    for got, again in zip(result, attend_selected(q, records, slots, SCALE, splits=splits), strict=True):
        assert_same_bits(again, got)


@pytest.mark.parametrize("form", FORMATS)
def test_counts_of_records(device, form):
    counts = [*KEY_COUNTS, -3]
    slots = torch.stack([torch.randperm(200, generator=generator(seed))[:70] for seed in range(len(counts))]).int()
    lengths = torch.tensor(counts, dtype=torch.int32, device=device)
    records, q = make_records(200, form, device), make_queries(len(counts), 4, device)
    result = attend_selected(q, records, slots.to(device), SCALE, lengths_R=lengths)
    hidden = torch.arange(70) >= lengths.cpu()[:, None]
    check(result, q, records, slots.masked_fill(hidden, -1))


@pytest.mark.parametrize("form", FORMATS)
def test_records_that_are_not_selected_may_hold_anything(device, form):
    """As in a fresh cache: every other record is NaN, record 0 included."""
    records, q = make_records(100, form, device), make_queries(2, 16, device)
    slots = torch.full((2, 64), -1, dtype=torch.int32)
    slots[0, ::3] = torch.arange(22, dtype=torch.int32) * 2 + 1
    slots[1, 40] = 7
    records[::2] = torch.nan if form == "bfloat16" else 0xFF
    check(attend_selected(q, records, slots.to(device), SCALE, splits=1), q, records, slots)


@pytest.mark.parametrize("form", FORMATS)
def test_all_records_of_short_contexts(device, form):
    lengths = [*KEY_COUNTS, 150]
    table, num_pages = block_table(lengths)
    sequences = torch.tensor([5, 1, 0, 2, 3, 4, 5], dtype=torch.int32)
    seen = torch.tensor([lengths[sequence] for sequence in sequences], dtype=torch.int32)
    seen[-1] = 77  # an earlier token of the same sequence
    records, q = make_records(num_pages * 64, form, device), make_queries(7, 4, device)
    unused = torch.ones(num_pages, dtype=torch.bool)
    unused[table[table >= 0].long()] = False
    records.view(num_pages, 64, -1)[unused.to(device)] = torch.nan if form == "bfloat16" else 0xFF
    result = attend_paged(q, records, table.to(device), sequences.to(device), seen.to(device), SCALE)
    positions = torch.arange(192, dtype=torch.int32).expand(7, -1).masked_fill(torch.arange(192) >= seen[:, None], -1)
    slots = paged_reference.slots_of(positions, table, sequences)
    check(result, q, records, slots)
    for got, same in zip(result, attend_selected(q, records, slots.to(device), SCALE, splits=4), strict=True):
        assert_close(got, same, absolute=1e-2)


def test_a_full_row_of_the_real_sizes(device):
    records, q = make_records(2100, "float8", device), make_queries(1, 128, device)
    slots = torch.randperm(2100, generator=generator())[None, :2048].int()
    check(attend_selected(q, records, slots.to(device), SCALE, splits=1), q, records, slots)


@pytest.mark.parametrize("form", FORMATS)
def test_offsets_beyond_int32(device, form):
    near = make_records(3, form, device)
    far = torch.tensor([[5, 3_900_000, 3_999_999]], dtype=torch.int32, device=device)
    width = RECORD_BYTES if form == "float8" else 576
    records = sparse((4_000_000, width), (width, 1), near.dtype, device)
    records[far[0].long()] = near
    q = make_queries(1, 16, device)
    slots = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    check(attend_selected(q, records, far, SCALE), q, near, slots)


def test_strided_queries_and_no_rows(device):
    records = make_records(64, "bfloat16", device)
    wide = make_queries(4, 32, device)
    q = wide[::2, ::2]
    slots = torch.arange(64, dtype=torch.int32).expand(2, -1)
    check(attend_selected(q, records, slots.to(device), SCALE), q, records, slots)
    none = torch.zeros(0, 64, dtype=torch.int32, device=device)
    out, lse = attend_selected(q[:0], records, none, SCALE)
    assert out.shape == (0, 16, 512) and lse.shape == (0, 16)
    out, lse = attend_selected(q, records, none.new_zeros(2, 0), SCALE)
    assert bool((out == 0).all()) and bool((lse == torch.inf).all())


def test_splits_fill_the_gpu():
    assert [choose_splits(rows, 128, 2048) for rows in (1, 8, 32, 66, 4096)] == [32, 8, 2, 1, 1]
    assert choose_splits(1, 128, 100) == choose_splits(0, 128, 64) == 1


def test_arguments_that_do_not_fit_are_refused(device):
    q, records = make_queries(1, 16, device), make_records(64, "bfloat16", device)
    slots = torch.zeros(1, 64, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="up to 2048 slots a row, not 2049"):
        attend_selected(q, records, slots.new_zeros(1, 2049), SCALE)
    with pytest.raises(ValueError, match=r"q is \(1, 16, 512\).*expected \[R, H, 576\] bfloat16"):
        attend_selected(q[..., :512], records, slots, SCALE)
    with pytest.raises(ValueError, match=r"records is \(64, 576\) torch.float32.*expected \(64, 576\) torch.bfloat16"):
        attend_selected(q, records.float(), slots, SCALE)
    with pytest.raises(ValueError, match="split 1 to 32 ways, not 33"):
        attend_selected(q, records, slots, SCALE, splits=33)
    odd = torch.zeros(16 * 577, dtype=torch.bfloat16, device=device).as_strided((1, 16, 576), (16 * 577, 577, 1))
    with pytest.raises(ValueError, match="stride_q_head is 577, and must be a multiple of 16"):
        attend_selected(odd, records, slots, SCALE)


def test_the_bound_is_not_empty(device):
    slots = torch.arange(64, dtype=torch.int32)[None]
    records, q = make_records(64, "bfloat16", device), make_queries(1, 16, device)
    out, lse = attend_selected(q, records, slots.to(device), SCALE)
    with pytest.raises(AssertionError, match=r"out: .* elements are wrong"):
        check((out * 1.02, lse), q, records, slots)
    with pytest.raises(AssertionError, match="lse: 16 of 16 elements are wrong"):
        check((out, lse + 1e-4), q, records, slots)
