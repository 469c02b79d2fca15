"""Inputs of a device step: where each token lies, and what the rows that fill a bucket up must not do."""

import numpy as np
import pytest
import torch

from workers.model.device_batch import build_host_batch
from workers.model.forward import Piece
from workers.model.graphs import Buckets, context_buckets, row_buckets
from workers.parallel.lockstep import DecodeSize
from workers.staging import Staging, upload_bytes

TABLE = np.array([[5, 7, 2], [9, 4, 0]], dtype=np.int64)


def test_pieces_lie_in_their_order():
    pieces = [Piece([11, 12, 13], 62, 0, samples=True), Piece([21], 64, 1, samples=False)]
    host = build_host_batch(pieces, TABLE)
    ids, positions, slots, table, sequences, lengths, wanted, spans = (array.tolist() for array in host.arrays)
    assert ids == [11, 12, 13, 21]
    assert positions == [62, 63, 64, 64]
    assert slots == [5 * 64 + 62, 5 * 64 + 63, 7 * 64, 4 * 64]
    assert table == [[5, 7], [9, 4]]
    assert sequences == [0, 0, 0, 1]
    assert lengths == [63, 64, 65, 65]
    assert wanted == [2]
    assert spans == [[0, 3, 0, 65], [3, 1, 65, 65]]
    assert [tuple(span) for span in spans] == list(host.on([torch.from_numpy(one) for one in host.arrays]).pieces)
    assert (host.most_context, host.is_decode) == (65, False)


def test_a_decode_step_filled_up_writes_and_sees_nothing_more():
    pieces = [Piece([3], 70, 1, samples=True), Piece([4], 0, 0, samples=True), Piece([5], 1, 0, samples=True)]
    host = build_host_batch(pieces, TABLE, fill_to=DecodeSize(4, 192))
    ids, positions, slots, table, sequences, lengths, wanted, spans = host.arrays
    assert ids.tolist() == [3, 4, 5, 0]
    assert slots.tolist() == [4 * 64 + 6, 5 * 64, 5 * 64 + 1, -1]
    assert lengths.tolist() == [71, 1, 2, 0]
    assert table.shape == (4, 3) and table[0].tolist() == [9, 4, 0] and table[3].tolist() == [0, 0, 0]
    assert sequences.tolist() == wanted.tolist() == [0, 1, 2, 3]
    assert (host.num_tokens, host.most_context, host.is_decode) == (4, 192, True)
    assert host.filled_to == DecodeSize(4, 192) and host.on(host.arrays).is_filled
    assert positions.tolist() == [70, 0, 1, 0]
    assert spans.shape == (0, 4) and host.on(host.arrays).pieces == ()


def test_buckets():
    assert row_buckets(5) == (1, 2, 4, 5)
    assert row_buckets(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert row_buckets(200) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 128, 192, 200)
    assert context_buckets(2048, 163840) == (2048, 8192, 32768, 131072, 163840)
    assert context_buckets(2048, 1024) == (1024,)
    buckets = Buckets(rows=(1, 4, 8), contexts=(64, 192))
    held = [buckets.holding(DecodeSize(rows, context)) for rows, context in ((0, 0), (1, 64), (2, 65), (8, 192))]
    assert held == [DecodeSize(1, 64), DecodeSize(1, 64), DecodeSize(4, 192), DecodeSize(8, 192)]
    assert buckets.largest_first()[:4] == [DecodeSize(rows, 192) for rows in (8, 4, 1)] + [DecodeSize(8, 64)]
    with pytest.raises(AssertionError, match="a decode step of 9, at most 8"):
        buckets.holding(DecodeSize(9, 64))


def test_arrays_arrive_in_one_buffer_each_at_an_aligned_place():
    arrays = [
        np.arange(3, dtype=np.int64),
        np.array([[1, 2], [3, 4]], dtype=np.int32),
        np.zeros(0, dtype=np.float32),
        np.arange(6, dtype=np.float64)[::2],
    ]
    staging = Staging(torch.device("cpu"))
    first = staging.upload(arrays)
    again = staging.upload([array + 1 for array in arrays])
    for tensor, later, array in zip(first, again, arrays, strict=True):
        assert tensor.data_ptr() % 16 == 0
        assert np.array_equal(tensor.numpy(), array) and np.array_equal(later.numpy(), array + 1)
    into = torch.zeros(upload_bytes(arrays), dtype=torch.uint8)
    staging.upload(arrays, into=into)
    assert into[:24].view(torch.int64).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_rows", [1, 8])
def test_an_idle_step_of_a_bucket(num_rows):
    host = build_host_batch([], np.zeros((1, 1), dtype=np.int64), fill_to=DecodeSize(num_rows, 130))
    assert host.is_decode and host.num_tokens == num_rows
    assert host.arrays[3].shape == (num_rows, 3) and set(host.arrays[2].tolist()) == {-1}
