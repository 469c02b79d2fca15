"""The bytes on the wire between two ranks, version 1.

    sender                                    receiver
    hello: _PREFIX, then JSON            ->
                                         <-   answer: _PREFIX, then JSON
    block: _BLOCK, then the payload      ->
                                         <-   _ACK                             for each block, in order

A connection carries blocks of one ticket, in the order of the prompt. Every field of a block's header is compared with
what the receiver expects, and the payload with its CRC-32; numbers are little-endian. With the transport `nixl` the
addresses of the block's pieces stand where the payload does, which the receiver then reads by itself.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import ssl
import struct
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from hashlib import blake2b
from typing import Any

from baleen.blocks import BlockHash
from workers.cache.block_bytes import BlockLayout
from workers.transfer.tls import speaks_tls
from workers.transfer.transport import CacheIdentity, TransferError

MAGIC = b"BLNK"
VERSION = 1

_PREFIX = struct.Struct("<4sHI")
_BLOCK = struct.Struct("<4sH16s16sI16sQI")
_ACK = struct.Struct("<IB")
_MOST_JSON_BYTES = 1 << 18
"""Room for the NIXL metadata of some thousand layers."""

_MOST_VIEWS = 512
"""Buffers of one system call; Linux takes 1024."""

BLOCK_HEADER_BYTES = _BLOCK.size


class AckStatus(IntEnum):
    """What became of a block. After DAMAGED the receiver hangs up."""

    LANDED = 0
    DUPLICATE = 1
    DAMAGED = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """A sender's first words. It will send blocks first_block to first_block + num_blocks - 1.

    transport, metadata: of its `Payload`.
    """

    sender: str
    identity: CacheIdentity
    ticket: str
    first_block: int
    num_blocks: int
    transport: str
    metadata: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """Empty `refusal`: go ahead."""

    receiver: str
    refusal: str


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """What stands before each payload. identity, ticket: digests of 16 bytes."""

    identity: bytes
    ticket: bytes
    index: int
    block_hash: BlockHash
    num_bytes: int
    checksum: int


def ticket_digest(ticket: str) -> bytes:
    """16 bytes that stand for a ticket in the header of every block."""
    return blake2b(ticket.encode(), digest_size=16).digest()


def checksum(views: Iterable[memoryview]) -> int:
    """CRC-32 over all views in order."""
    value = 0
    for view in views:
        value = zlib.crc32(view, value)
    return value


def send_hello(sock: socket.socket, hello: Hello) -> None:
    """Raises OSError."""
    metadata = {"data": base64.b64encode(hello.metadata).decode(), "checksum": zlib.crc32(hello.metadata)}
    _send_json(sock, {**asdict(replace(hello, metadata=b"")), "metadata": metadata})


def receive_hello(sock: socket.socket) -> Hello:
    """Raises TransferError on anything that is no hello of this version, OSError."""
    body = _receive_json(sock)
    try:
        identity = CacheIdentity(body["identity"]["model"], BlockLayout(**body["identity"]["layout"]))
        metadata = base64.b64decode(body["metadata"]["data"], validate=True)
        crc = body["metadata"]["checksum"]
        places = body["first_block"], body["num_blocks"]
        hello = Hello(body["sender"], identity, body["ticket"], *places, body["transport"], metadata)
    except (KeyError, TypeError, binascii.Error) as error:
        raise TransferError(f"the hello lacks or does not know a field: {error}") from error
    if not isinstance(hello.ticket, str):
        raise TransferError(f"the ticket is {hello.ticket!r}, which is no text")
    # foreign code takes it apart
    if zlib.crc32(metadata) != crc:
        raise TransferError("the metadata in the hello is damaged: its checksum is wrong")
    return hello


def send_answer(sock: socket.socket, answer: Answer) -> None:
    """Raises OSError."""
    _send_json(sock, asdict(answer))


def receive_answer(sock: socket.socket) -> Answer:
    """Raises TransferError on anything that is no answer of this version, OSError."""
    body = _receive_json(sock)
    try:
        return Answer(**body)
    except TypeError as error:
        raise TransferError(f"the answer lacks or does not know a field: {error}") from error


def pack_header(header: BlockHeader) -> bytes:
    """The header's BLOCK_HEADER_BYTES bytes."""
    return _BLOCK.pack(
        MAGIC,
        VERSION,
        header.identity,
        header.ticket,
        header.index,
        header.block_hash,
        header.num_bytes,
        header.checksum,
    )


def unpack_header(data: bytes) -> BlockHeader:
    """Raises TransferError on another magic number or version."""
    magic, version, identity, ticket, index, block_hash, num_bytes, crc = _BLOCK.unpack(data)
    _require_version(magic, version)
    return BlockHeader(identity, ticket, index, BlockHash(block_hash), num_bytes, crc)


def send_ack(sock: socket.socket, index: int, status: AckStatus) -> None:
    """Raises OSError."""
    sock.sendall(_ACK.pack(index, status))


def receive_ack(sock: socket.socket) -> tuple[int, AckStatus]:
    """Raises TransferError, OSError."""
    index, status = _ACK.unpack(receive_exactly(sock, _ACK.size))
    try:
        return index, AckStatus(status)
    except ValueError as error:
        raise TransferError(f"block {index} was acknowledged with {status}, which means nothing") from error


def receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    """Raises TransferError if the peer hangs up before that, OSError."""
    data = bytearray(num_bytes)
    receive_into(sock, [memoryview(data)])
    return bytes(data)


def receive_into(sock: socket.socket, views: list[memoryview]) -> None:
    """Fill all views in order. Raises TransferError if the peer hangs up before that, OSError."""
    rest = views
    while rest:
        # TLS takes one buffer at a time
        one = isinstance(sock, ssl.SSLSocket)
        num_bytes = sock.recv_into(rest[0]) if one else sock.recvmsg_into(rest[:_MOST_VIEWS])[0]
        if not num_bytes:
            raise TransferError("the peer hung up")
        rest = _skip(rest, num_bytes)


def send_all(sock: socket.socket, views: list[memoryview]) -> None:
    """Send all views in order. Raises OSError."""
    if isinstance(sock, ssl.SSLSocket):
        for view in views:
            sock.sendall(view)
        return
    rest = views
    while rest:
        rest = _skip(rest, sock.sendmsg(rest[:_MOST_VIEWS]))


def tune(sock: socket.socket) -> None:
    """Small messages leave at once; buffers are left to the system, which adapts them."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def cut(sock: socket.socket) -> None:
    """Wake whoever waits on the socket, for good; from any thread."""
    try:
        # not the method of a TLS socket, which would leave it in the clear for a moment
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        # not connected, or not any more: who is about to wait looks for itself whether it still should
        return


def _skip(views: list[memoryview], num_bytes: int) -> list[memoryview]:
    place = 0
    while num_bytes and num_bytes >= len(views[place]):
        num_bytes -= len(views[place])
        place += 1
    rest = views[place:]
    if num_bytes:
        rest[0] = rest[0][num_bytes:]
    return rest


def _send_json(sock: socket.socket, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    sock.sendall(_PREFIX.pack(MAGIC, VERSION, len(data)) + data)


def _receive_json(sock: socket.socket) -> dict[str, Any]:
    magic, version, num_bytes = _PREFIX.unpack(receive_exactly(sock, _PREFIX.size))
    _require_version(magic, version)
    if num_bytes > _MOST_JSON_BYTES:
        raise TransferError(f"a greeting of {num_bytes} bytes, at most {_MOST_JSON_BYTES} are taken")
    try:
        body = json.loads(receive_exactly(sock, num_bytes))
    except ValueError as error:
        raise TransferError(f"a greeting that is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise TransferError("a greeting that is no JSON object")
    return body


def _require_version(magic: bytes, version: int) -> None:
    if speaks_tls(magic):
        raise TransferError("the peer speaks TLS, this rank plain TCP")
    if magic != MAGIC:
        raise TransferError(f"the peer does not speak the transfer protocol: {magic!r} in place of {MAGIC!r}")
    if version != VERSION:
        raise TransferError(f"the peer speaks version {version} of the transfer protocol, this rank version {VERSION}")
