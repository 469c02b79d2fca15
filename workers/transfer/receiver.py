"""Taking blocks over TCP: one thread listens, one per connection writes into the blocks of its ticket.

A block is received straight into its place in the cache, which nobody else reads or writes until it has landed; on a
GPU into memory beside it first.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from threading import Lock, Thread

from baleen.telemetry import Log
from workers.cache.block_bytes import BlockBytes
from workers.transfer.payload import Payload, Source
from workers.transfer.protocol import (
    BLOCK_HEADER_BYTES,
    AckStatus,
    Answer,
    BlockHeader,
    Hello,
    checksum,
    cut,
    receive_exactly,
    receive_hello,
    send_ack,
    send_answer,
    ticket_digest,
    tune,
    unpack_header,
)
from workers.transfer.tls import Tls, shake_hands, speaks_tls
from workers.transfer.transport import (
    BlockLanded,
    CacheIdentity,
    Landing,
    LandingEnded,
    TransferError,
    TransferNews,
    TransportCounts,
)

HANDSHAKE_TIMEOUT_S = 5.0
BLOCK_TIMEOUT_S = 10.0
"""Longest silence within a block."""

MOST_CONNECTIONS = 256
"""Connections beyond this are cut at once."""

_BACKLOG = 128


@dataclass(slots=True, eq=False)
class _Ticket:
    """A landing and the one connection that ever uses it."""

    landing: Landing
    connection: socket.socket | None = None
    revoked: bool = False


class Receiver:
    """Listens on `port` of `host`; 0 is a free one."""

    def __init__(
        self,
        host: str,
        cache: BlockBytes,
        model: str,
        payload: Payload,
        *,
        port: int = 0,
        tls: Tls | None = None,
        log: Log | None = None,
    ) -> None:
        self._cache = cache
        self._payload = payload
        self._tls = tls
        self._log = log or Log("off")
        self._identity = CacheIdentity(model, cache.layout)
        self._digest = self._identity.digest
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._listener.getsockname()[1]}"
        self._lock = Lock()
        self._tickets: dict[str, _Ticket] = {}
        self._connections: set[socket.socket] = set()
        self._closed = False
        self.counts = TransportCounts(block_bytes=cache.layout.block_bytes)
        self._post: Callable[[TransferNews], object] | None = None

    def start(self, post: Callable[[TransferNews], object]) -> None:
        """See Transport."""
        assert self._post is None, "started twice"
        self._post = post
        Thread(target=self._listen, name="transfer-listen", daemon=True).start()

    def expect(self, landing: Landing) -> None:
        """See Transport."""
        assert len(landing.block_ids) == len(landing.hashes) > 0
        with self._lock:
            assert landing.ticket not in self._tickets
            self._tickets[landing.ticket] = _Ticket(landing)

    def revoke(self, ticket: str) -> bool:
        """See Transport."""
        with self._lock:
            entry = self._tickets.get(ticket)
            if entry is None:
                return True
            if entry.connection is None:
                del self._tickets[ticket]
                return True
            entry.revoked = True
            cut(entry.connection)
            return False

    def close(self) -> None:
        """See Transport."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                cut(connection)
        cut(self._listener)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                raise
            with self._lock:
                welcome = len(self._connections) < MOST_CONNECTIONS and not self._closed
                if welcome:
                    self._connections.add(connection)
            if welcome:
                name = f"{peer[0]}:{peer[1]}"
                Thread(target=self._serve, args=(connection, name), name="transfer-in", daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        """One connection from its hello to its end."""
        entry: _Ticket | None = None
        failure: str | None = "the thread of the transfer failed"
        try:
            tune(connection)
            connection.settimeout(HANDSHAKE_TIMEOUT_S)
            if self._tls is not None:
                connection = self._secure(connection, peer, self._tls)
            hello = receive_hello(connection)
            entry = self._admit(hello, connection, peer)
            if entry is not None:
                with closing(self._payload.open(hello.metadata)) as source:
                    self._take_blocks(connection, entry, source)
            failure = None
        except (OSError, TransferError) as error:
            failure = f"transfer from {peer}: {error or type(error).__name__}"
            if entry is None:
                self._log.warning("transfer refused", cause=failure)
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)
                if entry is not None:
                    del self._tickets[entry.landing.ticket]
            if entry is not None:
                self._tell(LandingEnded(entry.landing.ticket, failure))

    def _secure(self, connection: socket.socket, peer: str, tls: Tls) -> socket.socket:
        """The connection under TLS. Raises TransferError, OSError."""
        if not speaks_tls(connection.recv(1, socket.MSG_PEEK)):
            hello = receive_hello(connection)
            refusal = f"receiver {self.address} takes blocks over TLS only, sender {hello.sender} speaks plain TCP"
            send_answer(connection, Answer(self.address, refusal))
            raise TransferError(refusal)
        with self._lock:
            self._connections.discard(connection)
            secured = tls.wrap_accepted(connection)
            self._connections.add(secured)
            if self._closed:
                cut(secured)
        try:
            shake_hands(secured)
        except BaseException:
            secured.close()
            with self._lock:
                self._connections.discard(secured)
            raise
        return secured

    def _admit(self, hello: Hello, connection: socket.socket, peer: str) -> _Ticket | None:
        """Answer a hello; None if it was refused."""
        entry: _Ticket | None = None
        with self._lock:
            refusal = self._refusal(hello, peer)
            if not refusal:
                entry = self._tickets[hello.ticket]
                entry.connection = connection
        if refusal:
            self._log.warning("transfer refused", cause=refusal)
        try:
            send_answer(connection, Answer(self.address, refusal))
        except OSError:
            # the ticket is used up by now, and whoever waits for its blocks must hear of the end
            if entry is None:
                raise
        return entry

    def _refusal(self, hello: Hello, peer: str) -> str:
        """Why this hello is not welcome, or an empty text."""
        if hello.transport != self._payload.name:
            return (
                f"transports differ: sender {hello.sender} has {hello.transport}, "
                f"receiver {self.address} has {self._payload.name}"
            )
        if hello.identity != self._identity:
            return (
                f"caches differ: sender {hello.sender} has {hello.identity}, "
                f"receiver {self.address} has {self._identity}"
            )
        entry = self._tickets.get(hello.ticket)
        if entry is None or entry.revoked:
            self.counts.fenced += 1
            return f"receiver {self.address} knows no such ticket of {peer}, or it has expired"
        if entry.connection is not None:
            self.counts.fenced += 1
            return f"receiver {self.address} has seen this ticket before, a second use from {peer} is refused"
        landing = entry.landing
        if (hello.first_block, hello.num_blocks) != (landing.first_block, len(landing.block_ids)):
            return (
                f"receiver {self.address} expects {len(landing.block_ids)} blocks from block {landing.first_block}, "
                f"sender {hello.sender} offers {hello.num_blocks} from block {hello.first_block}"
            )
        return ""

    def _take_blocks(self, connection: socket.socket, entry: _Ticket, source: Source) -> None:
        landing = entry.landing
        num_landed = 0
        while num_landed < len(landing.block_ids):
            # between blocks the sender computes; the reservation's end cuts the connection
            connection.settimeout(landing.timeout_s)
            header = unpack_header(receive_exactly(connection, BLOCK_HEADER_BYTES))
            connection.settimeout(BLOCK_TIMEOUT_S)
            place = header.index - landing.first_block
            self._check_header(header, landing, num_landed)
            if place < num_landed:
                # it may be in use by now, so what comes again is read into nowhere
                source.skip(connection, header.num_bytes)
                send_ack(connection, header.index, AckStatus.DUPLICATE)
                continue
            with self._cache.open(landing.block_ids[place]) as block:
                source.fill(connection, block)
                if checksum(block.views) != header.checksum:
                    with self._lock:
                        self.counts.damaged += 1
                    send_ack(connection, header.index, AckStatus.DAMAGED)
                    raise TransferError(f"block {header.index} is damaged: its checksum is wrong")
                source.keep(block)
            with self._lock:
                if entry.revoked:
                    self.counts.fenced += 1
                    raise TransferError(f"block {header.index} came after the reservation had ended")
                num_landed += 1
                self._tell(BlockLanded(landing.ticket, header.index))
            send_ack(connection, header.index, AckStatus.LANDED)

    def _check_header(self, header: BlockHeader, landing: Landing, num_landed: int) -> None:
        place = header.index - landing.first_block
        what = f"block {header.index}"
        if header.identity != self._digest:
            raise TransferError(f"{what} is of another model or layout than this connection's")
        if header.ticket != ticket_digest(landing.ticket):
            raise TransferError(f"{what} carries another ticket than this connection's")
        if not 0 <= place <= num_landed:
            raise TransferError(f"{what} came where block {landing.first_block + num_landed} was due")
        if header.block_hash != landing.hashes[place]:
            raise TransferError(f"{what} is of another prompt: its hash is not the one expected")
        if header.num_bytes != self._cache.layout.block_bytes:
            raise TransferError(f"{what} has {header.num_bytes} bytes, expected {self._cache.layout.block_bytes}")

    def _tell(self, news: TransferNews) -> None:
        assert self._post is not None
        self._post(news)
