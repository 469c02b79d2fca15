"""What a block is as bytes: sizes, order and format, and how a transport reaches them. No torch."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Bytes of one block, in this order: its latent records layer by layer, then its index keys layer by layer.

    record_format: names what the numbers are; sizes are per layer.
    """

    record_format: str
    num_layers: int
    latent_bytes: int
    index_bytes: int

    @property
    def block_bytes(self) -> int:
        """Bytes of a whole block."""
        return self.num_layers * (self.latent_bytes + self.index_bytes)

    def __str__(self) -> str:
        sizes = f"{self.latent_bytes} + {self.index_bytes} bytes per block"
        return f"{self.record_format}, {self.num_layers} layers of {sizes}"


@dataclass(frozen=True, slots=True)
class MemoryKind:
    """Where blocks lie: the machine's memory, or that of its GPU `device`."""

    on_gpu: bool
    device: int


HOST = MemoryKind(on_gpu=False, device=0)


class OpenBlock(Protocol):
    """A block whose bytes are at hand.

    views: writable memory of the machine for all bytes, in the layout's order: the block's own, or memory beside it.
    """

    views: list[memoryview]

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Address and bytes of the block's own memory: of each layer's records, then of each layer's index keys."""
        ...

    def load(self) -> None:
        """Bring the block's bytes into `views`; they are there on return."""
        ...

    def store(self) -> None:
        """Bring the bytes in `views` into the block; they are there on return."""
        ...


class BlockBytes(Protocol):
    """One rank's cache as a transport sees it."""

    @property
    def layout(self) -> BlockLayout:
        """Sizes and format of every block."""
        ...

    @property
    def memory(self) -> MemoryKind:
        """Where all of it lies."""
        ...

    def open(self, block_id: int) -> AbstractContextManager[OpenBlock]:
        """The block, for any thread. Whoever reads holds it as lent, whoever writes has it as arriving."""
        ...

    def regions(self) -> list[tuple[int, int]]:
        """Address and bytes of each piece of memory in which blocks lie, for a network to register once."""
        ...


class HostBlock:
    """An `OpenBlock` in the machine's memory, at hand without a copy."""

    def __init__(self, views: list[memoryview]) -> None:
        self.views = views

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """See OpenBlock."""
        return [(address_of(view), len(view)) for view in self.views]

    def load(self) -> None:
        """See OpenBlock; they are there."""

    def store(self) -> None:
        """See OpenBlock; they are there."""


class HostBlocks(ABC):
    """What `BlockBytes` asks for beside layout and regions, of blocks in the machine's memory."""

    memory = HOST

    @abstractmethod
    def views(self, block_id: int) -> list[memoryview]:
        """The block's own memory in the layout's order, writable, without a copy; any thread."""

    @contextmanager
    def open(self, block_id: int) -> Iterator[OpenBlock]:
        """See BlockBytes."""
        yield HostBlock(self.views(block_id))


def address_of(view: memoryview) -> int:
    """Where a writable view begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def export_block(cache: BlockBytes, block_id: int) -> bytes:
    """A copy of the whole block as contiguous bytes."""
    with cache.open(block_id) as block:
        block.load()
        return b"".join(block.views)


def import_block(cache: BlockBytes, block_id: int, data: Sequence[int] | bytes) -> None:
    """Overwrite a block with the bytes that `export_block` gave for one of the same layout."""
    source = memoryview(bytes(data))
    assert len(source) == cache.layout.block_bytes, f"{len(source)} bytes, a block has {cache.layout.block_bytes}"
    with cache.open(block_id) as block:
        for view in block.views:
            view[:], source = source[: len(view)], source[len(view) :]
        block.store()
