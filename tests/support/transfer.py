"""Blocks, news and a raw peer for tests of transfers."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread

from baleen.blocks import BlockHash
from baleen.telemetry import Log
from workers.cache.block_bytes import BlockLayout, HostBlock, HostBlocks, address_of
from workers.transfer import protocol
from workers.transfer.nixl_payload import NixlPayload
from workers.transfer.payload import Payload, StreamPayload
from workers.transfer.tcp import TcpTransport
from workers.transfer.tls import Tls
from workers.transfer.transport import BlockPushed, CacheIdentity, Landing, Push, PushEnded, TransferNews

LAYOUT = BlockLayout("test numbers", 3, 500, 77)
MODEL = "ab" * 16
IDENTITY = CacheIdentity(MODEL, LAYOUT)
NIXL_ENVIRONMENT = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}
"""Without shared memory, so that ranks on one machine talk as those on two do."""

TIMEOUT_S = 20.0
"""Bounds every wait of a test; nothing takes nearly as long."""


class Memory(HostBlocks):
    """Blocks of random bytes, as a `BlockBytes`."""

    def __init__(self, num_blocks: int, seed: int, layout: BlockLayout = LAYOUT) -> None:
        self.layout = layout
        random_bytes = random.Random(seed).randbytes
        self.blocks = [bytearray(random_bytes(layout.block_bytes)) for _ in range(num_blocks)]

    def views(self, block_id: int) -> list[memoryview]:
        """See BlockBytes."""
        rest, pieces = memoryview(self.blocks[block_id]), []
        for size in [self.layout.latent_bytes] * self.layout.num_layers + [
            self.layout.index_bytes
        ] * self.layout.num_layers:
            pieces.append(rest[:size])
            rest = rest[size:]
        return pieces

    def regions(self) -> list[tuple[int, int]]:
        """See BlockBytes."""
        return [(address_of(memoryview(block)), len(block)) for block in self.blocks]


class News:
    """What a transport told, in order."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[TransferNews] = SimpleQueue()

    def post(self, news: TransferNews) -> None:
        """Called by the transport's threads."""
        self._queue.put(news)

    def next(self) -> TransferNews:
        """The next news; raises queue.Empty if none come."""
        return self._queue.get(timeout=TIMEOUT_S)

    def take(self, count: int) -> list[TransferNews]:
        """The next `count` news."""
        return [self.next() for _ in range(count)]

    @property
    def silent(self) -> bool:
        """Whether nothing was told since the last call."""
        return self._queue.empty()


def name_of(index: int) -> BlockHash:
    """A hash for block `index`."""
    return BlockHash(bytes([index]) * 16)


def landing(ticket: str, block_ids: list[int], first_block: int = 0) -> Landing:
    """A landing of blocks named by `name_of`."""
    hashes = tuple(name_of(first_block + place) for place in range(len(block_ids)))
    return Landing(ticket, first_block, tuple(block_ids), hashes, TIMEOUT_S)


class Side:
    """One rank's half: its blocks, its transport, its news, what it logged."""

    def __init__(
        self,
        num_blocks: int = 6,
        *,
        seed: int = 0,
        model: str = MODEL,
        layout: BlockLayout = LAYOUT,
        tls: Tls | None = None,
        nixl: bool = False,
    ) -> None:
        self.memory = Memory(num_blocks, seed, layout)
        self.news = News()
        self.lines: SimpleQueue[str] = SimpleQueue()
        self.payload: Payload = NixlPayload(self.memory) if nixl else StreamPayload()
        log = Log(write=self.lines.put)
        self.transport = TcpTransport("127.0.0.1", self.memory, model, tls=tls, payload=self.payload, log=log)
        self.transport.start(self.news.post)
        self.before = [bytes(block) for block in self.memory.blocks]

    def push(self, address: str, ticket: str, block_ids: list[int], first_block: int = 0) -> Push:
        """Send blocks under the names of their places."""
        push = self.transport.push(1, address, ticket, first_block, len(block_ids))
        for place, block_id in enumerate(block_ids):
            push.send(first_block + place, block_id, name_of(first_block + place))
        push.finish()
        return push

    def changed(self) -> list[int]:
        """Blocks that are not what they were."""
        return [i for i, block in enumerate(self.memory.blocks) if bytes(block) != self.before[i]]


def failure_of(news: News) -> str | None:
    """The failure with which a push ended."""
    ended = news.next()
    while isinstance(ended, BlockPushed):
        ended = news.next()
    assert isinstance(ended, PushEnded)
    return ended.failure


class RawSender:
    """A sender that says exactly what a test wants."""

    def __init__(
        self, address: str, tls: Tls | None = None, *, nixl: bool = False, payload: Payload | None = None
    ) -> None:
        self._memory = Memory(4, 0)
        self._num_sent = 0
        self._payload = payload or (NixlPayload(self._memory) if nixl else StreamPayload())
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        if tls is not None:
            self.sock = tls.client.wrap_socket(self.sock, server_hostname=host)

    def __enter__(self) -> RawSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def greet(
        self, ticket: str, num_blocks: int, first_block: int = 0, identity: CacheIdentity = IDENTITY
    ) -> protocol.Answer:
        """Say hello and read the answer."""
        words = self._payload.name, self._payload.metadata
        hello = protocol.Hello("10.0.0.9:1", identity, ticket, first_block, num_blocks, *words)
        protocol.send_hello(self.sock, hello)
        return protocol.receive_answer(self.sock)

    def send(self, ticket: str, index: int, payload: bytes, /, **changed: object) -> None:
        """Send one block; `changed` are fields of the header that are wrong on purpose."""
        header = protocol.BlockHeader(
            IDENTITY.digest,
            protocol.ticket_digest(ticket),
            index,
            name_of(index),
            len(payload),
            protocol.checksum([memoryview(payload)]),
        )
        # each in memory of its own, since the receiver may come for it later
        self._memory.blocks[self._num_sent][:] = payload
        views = self._payload.after_header(HostBlock(self._memory.views(self._num_sent)))
        self._num_sent += 1
        self.sock.sendall(protocol.pack_header(replace(header, **changed)) + b"".join(views))  # type: ignore[arg-type]

    def ack(self) -> tuple[int, protocol.AckStatus]:
        """The next acknowledgement."""
        return protocol.receive_ack(self.sock)

    def hung_up(self) -> bool:
        """Whether the peer closes the connection; waits for it."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


class Cable:
    """A TCP connection in the middle that can be cut or disturbed at a certain byte of what the sender says."""

    def __init__(self, target: str, *, cut_at: int | None = None, flip_at: int | None = None) -> None:
        self._target = target
        self._cut_at = cut_at
        self._flip_at = flip_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _carry(self) -> None:
        inner, _ = self._listener.accept()
        host, _, port = self._target.rpartition(":")
        outer = socket.create_connection((host, int(port)))
        back = Thread(target=_copy, args=(outer, inner), daemon=True)
        back.start()
        with inner, outer:
            self._forward(inner, outer)
            _shut(outer)
            back.join(TIMEOUT_S)
            _shut(inner)

    def _forward(self, inner: socket.socket, outer: socket.socket) -> None:
        carried = 0
        while data := bytearray(_receive(inner)):
            if self._flip_at is not None and carried <= self._flip_at < carried + len(data):
                data[self._flip_at - carried] ^= 0x10
            cut = self._cut_at is not None and carried + len(data) >= self._cut_at
            try:
                outer.sendall(data[: (self._cut_at or 0) - carried] if cut else data)
            except OSError:
                return
            if cut:
                return
            carried += len(data)


@contextmanager
def cable(target: str, **faults: int) -> Iterator[str]:
    """The address of a Cable to `target`."""
    middle = Cable(target, **faults)
    try:
        yield middle.address
    finally:
        middle.close()


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except OSError:
        return b""


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := _receive(source):
            target.sendall(data)
    except OSError:
        return
    _shut(target)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return
