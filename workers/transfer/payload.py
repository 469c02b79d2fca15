"""How the bytes of a block get from one rank's memory to the other's, beside the connection that speaks of them."""

from __future__ import annotations

import socket
from typing import Protocol

from workers.transfer.protocol import receive_exactly, receive_into


class Source(Protocol):
    """The receiver's side of one connection; its thread only uses it."""

    def fill(self, sock: socket.socket, views: list[memoryview]) -> None:
        """Bring the block whose header was read last into `views`; nothing writes there once this has returned.

        The socket's timeout bounds the whole. Raises TransferError, OSError.
        """
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

    def after_header(self, views: list[memoryview]) -> list[memoryview]:
        """What follows a block's header on the connection."""
        ...

    def open(self, metadata: bytes) -> Source:
        """Begin to receive from a sender with such metadata. Raises TransferError."""
        ...


class StreamPayload:
    """A `Payload` and a `Source`: the bytes themselves follow the header, and go straight to their place."""

    name = "tcp"
    metadata = b""

    def after_header(self, views: list[memoryview]) -> list[memoryview]:
        """See Payload."""
        return views

    def open(self, metadata: bytes) -> StreamPayload:
        """See Payload."""
        return self

    def fill(self, sock: socket.socket, views: list[memoryview]) -> None:
        """See Source."""
        receive_into(sock, views)

    def skip(self, sock: socket.socket, num_bytes: int) -> None:
        """See Source."""
        receive_exactly(sock, num_bytes)

    def close(self) -> None:
        """See Source."""
