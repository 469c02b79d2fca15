"""A device's cache as bytes for a transport: a block passes through memory of the machine, pinned if there is a GPU.

Threads of transfers come here, never the step loop. A block's copy runs in a stream of its own, beside the steps: those
that wrote or read it are over, since the loop goes on only when its step is.

Legend: L layers, N blocks of the cache, B bytes of one layer's block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from workers.cache.block_bytes import BlockLayout, MemoryKind, OpenBlock
from workers.cache.device_tensors import DeviceCache


class DeviceBytes:
    """A `BlockBytes`. record_format: names what the numbers are, for a peer to compare."""

    def __init__(self, cache: DeviceCache, record_format: str) -> None:
        self._parts_LNB = cache.by_block()
        latent, index = self._parts_LNB
        self.layout = BlockLayout(record_format, latent.shape[0], latent.shape[2], index.shape[2])
        self.memory = MemoryKind(on_gpu=latent.is_cuda, device=latent.device.index or 0)
        # one for each block that is open at a time; appending and popping need no lock
        self._free: deque[_Room] = deque()

    @contextmanager
    def open(self, block_id: int) -> Iterator[OpenBlock]:
        """See BlockBytes; `views` is one, beside the block."""
        try:
            room = self._free.pop()
        except IndexError:
            room = _Room(self.layout, self._parts_LNB[0].device)
        try:
            yield DeviceBlock(room, [part[:, block_id] for part in self._parts_LNB])
        finally:
            self._free.append(room)

    def regions(self) -> list[tuple[int, int]]:
        """See BlockBytes."""
        return [(part.data_ptr(), part.nbytes) for part in self._parts_LNB]


class _Room:
    """Memory of the machine for one block, and the stream of its copies."""

    def __init__(self, layout: BlockLayout, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # a thread's device is the first one, unless it says so
        with torch.cuda.device(device) if self._on_gpu else nullcontext():
            whole = torch.empty(layout.block_bytes, dtype=torch.uint8, pin_memory=self._on_gpu)
            self._stream = torch.cuda.Stream(device) if self._on_gpu else None
            # blocking: a thread that waits leaves the processor to the others
            self._copied = torch.cuda.Event(blocking=True) if self._on_gpu else None
        self.view = whole.numpy().data
        split = layout.num_layers * layout.latent_bytes
        self.parts_LB = [part.view(layout.num_layers, -1) for part in (whole[:split], whole[split:])]

    def copy(self, targets_LB: list[torch.Tensor], sources_LB: list[torch.Tensor]) -> None:
        """Copy both parts, and wait until they are there."""
        beside: AbstractContextManager[object] = torch.cuda.stream(self._stream) if self._stream else nullcontext()
        with beside:
            for target, source in zip(targets_LB, sources_LB, strict=True):
                target.copy_(source, non_blocking=True)
            if self._copied is not None:
                self._copied.record()
                self._copied.synchronize()


class DeviceBlock:
    """An `OpenBlock` with a room for its bytes."""

    def __init__(self, room: _Room, parts_LB: list[torch.Tensor]) -> None:
        self.views = [room.view]
        self._room = room
        self._parts_LB = parts_LB

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """See OpenBlock."""
        return [(layer.data_ptr(), layer.nbytes) for part in self._parts_LB for layer in part]

    def load(self) -> None:
        """See OpenBlock."""
        self._room.copy(self._room.parts_LB, self._parts_LB)

    def store(self) -> None:
        """See OpenBlock."""
        self._room.copy(self._parts_LB, self._room.parts_LB)
