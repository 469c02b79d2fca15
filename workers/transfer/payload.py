"""How the bytes of a block get from one rank's memory to the other's, beside the connection that speaks of them."""

from __future__ import annotations

import socket
from typing import Protocol

from workers.cache.block_bytes import OpenBlock
from workers.transfer.protocol import receive_exactly, receive_into


class Source(Protocol):
    """The receiver's side of one connection; its thread only uses it."""

    def fill(self, sock: socket.socket, block: OpenBlock) -> None:
        """Bring the block whose header was read last into the block's views; nothing writes there, or into the block,
        once this has returned.

        The socket's timeout bounds the whole. Raises TransferError, OSError.
        """
        ...

    def keep(self, block: OpenBlock) -> None:
        """What `fill` brought is right: see that it is in the block."""
        ...

    def skip(self, sock: socket.socket, num_bytes: int) -> None:
        """Pass over the block whose header was read last. Raises TransferError, OSError."""
        ...

    def close(self) -> None:
        """The connection has ended."""
        ...


class Payload(Protocol):
    """One rank's way, for sending and receiving; any thread. name: of the transport; both peers must have the same."""

    name: str

    @property
    def metadata(self) -> bytes:
        """What a receiver needs before the first block."""
        ...

    def after_header(self, block: OpenBlock) -> list[memoryview]:
        """What follows a block's header on the connection. The block is loaded."""
        ...

    def open(self, metadata: bytes) -> Source:
        """Begin to receive from a sender with such metadata. Raises TransferError."""
        ...


class StreamPayload:
    """A `Payload` and a `Source`: the bytes themselves follow the header, and go straight to where they are at hand."""

    name = "tcp"
    metadata = b""

    def after_header(self, block: OpenBlock) -> list[memoryview]:
        """See Payload."""
        return block.views

    def open(self, metadata: bytes) -> StreamPayload:
        """See Payload."""
        return self

    def fill(self, sock: socket.socket, block: OpenBlock) -> None:
        """See Source."""
        receive_into(sock, block.views)

    def keep(self, block: OpenBlock) -> None:
        """See Source."""
        block.store()

    def skip(self, sock: socket.socket, num_bytes: int) -> None:
        """See Source."""
        receive_exactly(sock, num_bytes)

    def close(self) -> None:
        """See Source."""
