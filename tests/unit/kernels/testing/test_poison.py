"""Poisoned memory notices who writes beside a buffer, and who leaves a cell unwritten."""

import pytest
import torch

from kernels.testing.poison import Guarded, poisoned, sparse
from kernels.testing.shapes import block_table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_a_cell_that_nobody_wrote_is_nan(dtype):
    with poisoned():
        x = torch.empty(3, 5, dtype=dtype)
        y = torch.empty_like(x)
    assert bool(x.float().isnan().all()) and bool(y.float().isnan().all())


@pytest.mark.parametrize("offset", [-1, 15])
def test_a_write_beside_the_buffer_is_found(offset):
    buffer = Guarded((3, 5), torch.float32)
    buffer.tensor.fill_(1.0)
    buffer.check()
    buffer.tensor.as_strided((1,), (1,), buffer.tensor.storage_offset() + offset).fill_(1.0)
    with pytest.raises(AssertionError, match=r"[04] bytes before and [04] bytes after a buffer were overwritten"):
        buffer.check()


def test_a_write_between_rows_is_found():
    buffer = Guarded((3, 5), torch.int32, strides=(8, 1))
    buffer.tensor.fill_(1)
    buffer.check()
    buffer.tensor.as_strided((1,), (1,), buffer.tensor.storage_offset() + 5).fill_(1)
    with pytest.raises(AssertionError, match="4 bytes between the rows"):
        buffer.check()


def test_guards_of_buffers_made_inside_are_checked_at_the_end():
    with pytest.raises(AssertionError, match="overwritten"), poisoned():
        x = torch.empty(4, dtype=torch.int64)
        x.as_strided((5,), (1,)).fill_(0)
    assert torch.empty(2).storage_offset() == 0


def test_strides_beyond_int32_take_no_room():
    x = sparse((3, 4), (2**31, 1), torch.bfloat16)
    x[2] = 1.0
    assert x.stride(0) == 2**31 and x.sum() == 4


def test_pages_of_a_table_are_in_no_order():
    table, total = block_table([0, 1, 63, 64, 65, 640])
    used = table[table >= 0]
    assert (table >= 0).sum(1).tolist() == [0, 1, 1, 1, 2, 10]
    assert len(set(used.tolist())) == 15 and used.max() < total == 18 and used.tolist() != sorted(used.tolist())
