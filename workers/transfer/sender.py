"""Pushing blocks over TCP: one thread per transfer connects, sends what it is given and reads what is acknowledged."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from baleen.blocks import BlockHash
from workers.cache.block_bytes import BlockBytes
from workers.transfer.payload import Payload
from workers.transfer.protocol import (
    AckStatus,
    BlockHeader,
    Hello,
    checksum,
    cut,
    pack_header,
    receive_ack,
    receive_answer,
    send_all,
    send_hello,
    ticket_digest,
    tune,
)
from workers.transfer.tls import Tls, shake_hands
from workers.transfer.transport import BlockPushed, CacheIdentity, PushEnded, TransferError, TransferNews

CONNECT_TIMEOUT_S = 5.0
IO_TIMEOUT_S = 10.0
"""Longest wait for an acknowledgement, or for room to send on."""

WINDOW = 4
"""Blocks on their way without an acknowledgement, so that the checksum of one overlaps with the sending of the next."""


@dataclass(frozen=True, slots=True)
class _Item:
    index: int
    block_id: int
    block_hash: BlockHash


class TcpPush:
    """A `Push`. The thread ends with its news, whatever happens."""

    def __init__(
        self,
        number: int,
        address: str,
        hello: Hello,
        cache: BlockBytes,
        tls: Tls | None,
        payload: Payload,
        post: Callable[[TransferNews], object],
    ) -> None:
        self._number = number
        self._address = address
        self._hello = hello
        self._cache = cache
        self._tls = tls
        self._payload = payload
        self._post = post
        self._identity = hello.identity.digest
        self._ticket = ticket_digest(hello.ticket)
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._unacknowledged: deque[int] = deque()
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._cancelled: str | None = None
        Thread(target=self._run, name="transfer-out", daemon=True).start()

    def send(self, index: int, block_id: int, block_hash: BlockHash) -> None:
        """See Push."""
        self._queue.put(_Item(index, block_id, block_hash))

    def finish(self) -> None:
        """See Push."""
        self._queue.put(None)

    def cancel(self, reason: str) -> None:
        """See Push."""
        with self._lock:
            self._cancelled = self._cancelled or reason
            if self._socket is not None:
                cut(self._socket)
        self._queue.put(None)

    def _run(self) -> None:
        failure: str | None = "the thread of the transfer failed"
        try:
            with self._open_socket() as sock:
                with self._lock:
                    self._socket = sock
                try:
                    self._connect(sock)
                    self._send_all(sock)
                finally:
                    with self._lock:
                        self._socket = None
            failure = None
        except (OSError, TransferError) as error:
            failure = f"transfer to {self._address}: {error or type(error).__name__}"
        finally:
            self._post(PushEnded(self._number, self._cancelled or failure))

    def _open_socket(self) -> socket.socket:
        sock = socket.socket(_family(self._address), socket.SOCK_STREAM)
        return sock if self._tls is None else self._tls.wrap_unconnected(sock, _host(self._address))

    def _connect(self, sock: socket.socket) -> None:
        self._require_wanted()
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect((_host(self._address), int(self._address.rpartition(":")[2])))
        tune(sock)
        # a shutdown during the connect is lost on some systems
        self._require_wanted()
        if isinstance(sock, ssl.SSLSocket):
            shake_hands(sock)
        send_hello(sock, self._hello)
        answer = receive_answer(sock)
        if answer.refusal:
            raise TransferError(answer.refusal)
        sock.settimeout(IO_TIMEOUT_S)

    def _send_all(self, sock: socket.socket) -> None:
        """Send what is queued until the end; read acknowledgements when the window is full or nothing is queued."""
        while True:
            try:
                item = self._queue.get(block=not self._unacknowledged)
            except Empty:
                self._read_ack(sock)
                continue
            self._require_wanted()
            if item is None:
                break
            self._send_block(sock, item)
            while len(self._unacknowledged) >= WINDOW:
                self._read_ack(sock)
        while self._unacknowledged:
            self._read_ack(sock)

    def _send_block(self, sock: socket.socket, item: _Item) -> None:
        with self._cache.open(item.block_id) as block:
            block.load()
            header = BlockHeader(
                self._identity,
                self._ticket,
                item.index,
                item.block_hash,
                self._cache.layout.block_bytes,
                checksum(block.views),
            )
            send_all(sock, [memoryview(pack_header(header)), *self._payload.after_header(block)])
        self._unacknowledged.append(item.index)

    def _read_ack(self, sock: socket.socket) -> None:
        index, status = receive_ack(sock)
        expected = self._unacknowledged.popleft()
        if index != expected:
            raise TransferError(f"block {index} was acknowledged where block {expected} was due")
        if status is not AckStatus.LANDED:
            raise TransferError(f"block {index} was not taken: {status.name.lower()}")
        self._post(BlockPushed(self._number))

    def _require_wanted(self) -> None:
        if self._cancelled is not None:
            raise TransferError(self._cancelled)


def open_push(
    number: int,
    address: str,
    ticket: str,
    first_block: int,
    num_blocks: int,
    *,
    sender: str,
    cache: BlockBytes,
    model: str,
    tls: Tls | None,
    payload: Payload,
    post: Callable[[TransferNews], object],
) -> TcpPush:
    """Begin a transfer. sender: this rank's own address, for the peer's refusals."""
    identity = CacheIdentity(model, cache.layout)
    hello = Hello(sender, identity, ticket, first_block, num_blocks, payload.name, payload.metadata)
    return TcpPush(number, address, hello, cache, tls, payload, post)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if address.startswith("[") else socket.AF_INET


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")
