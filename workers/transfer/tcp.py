"""The transport: TCP between ranks, plain or under TLS, threads, no copies beside those of system and TLS.

A `Payload` other than the stream takes the blocks themselves off the connection.
"""

from __future__ import annotations

from collections.abc import Callable

from baleen.telemetry import Log
from workers.cache.block_bytes import BlockBytes
from workers.transfer.payload import Payload, StreamPayload
from workers.transfer.receiver import Receiver
from workers.transfer.sender import TcpPush, open_push
from workers.transfer.tls import Tls
from workers.transfer.transport import Landing, TransferNews, TransportCounts


class TcpTransport:
    """A `Transport`. It listens from the beginning; port 0 is a free one of `host`. model: fingerprint, hex.

    advertise: the `host:port` that peers are told; empty: the one that it listens on. payload: how the bytes of
    blocks move; in the clear only, where it is not the stream. Refused peers are logged.
    """

    def __init__(
        self,
        host: str,
        cache: BlockBytes,
        model: str,
        *,
        port: int = 0,
        advertise: str = "",
        tls: Tls | None = None,
        payload: Payload | None = None,
        log: Log | None = None,
    ) -> None:
        self._payload = payload or StreamPayload()
        assert tls is None or self._payload.name == "tcp", "only the stream goes through the connection"
        self.name = "tcp+tls" if tls else self._payload.name
        self._cache = cache
        self._model = model
        self._tls = tls
        self._receiver = Receiver(host, cache, model, self._payload, port=port, tls=tls, log=log)
        self._advertise = advertise
        self._post: Callable[[TransferNews], object] | None = None

    @property
    def address(self) -> str:
        """See Transport."""
        return self._advertise or self._receiver.address

    @property
    def counts(self) -> TransportCounts:
        """See Transport."""
        return self._receiver.counts

    def start(self, post: Callable[[TransferNews], object]) -> None:
        """See Transport."""
        self._post = post
        self._receiver.start(post)

    def expect(self, landing: Landing) -> None:
        """See Transport."""
        self._receiver.expect(landing)

    def revoke(self, ticket: str) -> bool:
        """See Transport."""
        return self._receiver.revoke(ticket)

    def push(self, number: int, address: str, ticket: str, first_block: int, num_blocks: int) -> TcpPush:
        """See Transport."""
        assert self._post is not None, "not started"
        return open_push(
            number,
            address,
            ticket,
            first_block,
            num_blocks,
            sender=self.address,
            cache=self._cache,
            model=self._model,
            tls=self._tls,
            payload=self._payload,
            post=self._post,
        )

    def close(self) -> None:
        """See Transport. Pushes are cancelled by whoever began them."""
        self._receiver.close()
