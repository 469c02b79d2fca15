"""Memory that tells: buffers full of NaN between guard bytes, and one that is wide enough to pass int32.

Under `poisoned()` every `torch.empty` and `torch.empty_like`, the launchers' own included, is such a buffer.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

GUARD_BYTES = 256
GUARD = 0xA5
POISON = 0xFF  # NaN in every float, -1 in every integer


class Guarded:
    """Owns one poisoned buffer and the guard bytes on both sides of it.

    shape, dtype, device as of torch.empty; strides in elements (contiguous if None). `tensor` is the buffer.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        strides: tuple[int, ...] | None = None,
    ) -> None:
        if strides is None:
            strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        reach = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        self._length = reach * dtype.itemsize
        end = -(-self._length // 16) * 16  # the guard starts at once, and the buffer after it is aligned
        self._bytes = torch.full((GUARD_BYTES + end + GUARD_BYTES,), GUARD, dtype=torch.uint8, device=device)
        payload = self._bytes[GUARD_BYTES : GUARD_BYTES + self._length]
        payload.fill_(POISON)
        self.tensor = payload.view(dtype).as_strided(shape, strides)
        self._reached = torch.zeros(reach, dtype=torch.bool).as_strided(shape, strides).fill_(True)
        self._size = dtype.itemsize

    def check(self) -> None:
        """Raise AssertionError if a byte outside of the tensor was written: a guard, or a gap between its rows."""
        data = self._bytes.cpu()
        sides = torch.cat((data[:GUARD_BYTES], data[GUARD_BYTES + self._length :]))
        before = int((data[:GUARD_BYTES] != GUARD).sum())
        after = int((sides != GUARD).sum()) - before
        assert not before and not after, f"{before} bytes before and {after} bytes after a buffer were overwritten"
        reach = self._length // self._size
        gaps = ~self._reached.as_strided((reach,), (1,))
        payload = data[GUARD_BYTES : GUARD_BYTES + self._length].view(reach, self._size)
        written = int((payload[gaps] != POISON).sum())
        assert not written, f"{written} bytes between the rows of a buffer were overwritten"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Poison and guard what `torch.empty` and `torch.empty_like` give inside; check the guards at the end."""
    buffers: list[Guarded] = []

    def guarded(shape: tuple[int, ...], dtype: torch.dtype | None, device: Any) -> torch.Tensor:
        buffers.append(Guarded(shape, dtype or torch.get_default_dtype(), device or "cpu"))
        return buffers[-1].tensor

    plain_empty, plain_like = torch.empty, torch.empty_like

    @functools.wraps(plain_empty)
    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None, **others: Any) -> torch.Tensor:
        if others:
            return plain_empty(*size, dtype=dtype, device=device, **others)
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return guarded(tuple(shape), dtype, device)

    @functools.wraps(plain_like)
    def empty_like(x: torch.Tensor, *, dtype: torch.dtype | None = None, **others: Any) -> torch.Tensor:
        if others or not x.is_contiguous():
            return plain_like(x, dtype=dtype, **others)
        return guarded(tuple(x.shape), dtype or x.dtype, x.device)

    with mock.patch.object(torch, "empty", empty), mock.patch.object(torch, "empty_like", empty_like):
        yield
    for buffer in buffers:
        buffer.check()


def sparse(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Zeros [shape] with strides (in elements) that may reach past 2**31; on a CPU only used pages take room."""
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if torch.device(device).type == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, reach * dtype.itemsize, flags=flags)
        return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)
    return torch.zeros(reach, dtype=dtype, device=device).as_strided(shape, strides)
