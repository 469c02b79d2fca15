"""What a block is as bytes: sizes, order and format, and how a transport reaches them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
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


class BlockBytes(Protocol):
    """One rank's cache as a transport sees it."""

    @property
    def layout(self) -> BlockLayout:
        """Sizes and format of every block."""
        ...

    def views(self, block_id: int) -> list[memoryview]:
        """The block's own memory in the layout's order, writable, without a copy; any thread.

        Whoever reads holds the block as lent, whoever writes has it as arriving.
        """
        ...

    def regions(self) -> list[tuple[int, int]]:
        """Address and bytes of each piece of memory in which blocks lie, for a network to register once."""
        ...


def export_block(cache: BlockBytes, block_id: int) -> bytes:
    """A copy of the whole block as contiguous bytes."""
    return b"".join(cache.views(block_id))


def import_block(cache: BlockBytes, block_id: int, data: Sequence[int] | bytes) -> None:
    """Overwrite a block with the bytes that `export_block` gave for one of the same layout."""
    source = memoryview(bytes(data))
    assert len(source) == cache.layout.block_bytes, f"{len(source)} bytes, a block has {cache.layout.block_bytes}"
    for view in cache.views(block_id):
        view[:], source = source[: len(view)], source[len(view) :]
