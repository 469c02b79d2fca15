"""Blocks by NIXL: the sender tells addresses on the connection, and the receiver reads that memory into its own.

Nobody writes into another rank's memory, so that nothing can land late. What is read from a block that its sender has
given to somebody else meanwhile has the wrong checksum. A GPU's blocks are read and written where they are; both sides
copy them to the machine's memory for the checksum alone.
"""

from __future__ import annotations

import importlib
import logging
import socket
import struct
import time
import uuid
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from baleen.errors import ConfigError
from workers.cache.block_bytes import BlockBytes, MemoryKind, OpenBlock
from workers.transfer.protocol import cut, receive_exactly
from workers.transfer.transport import TransferError

MOST_IDLE = 128
"""Senders that are remembered without a connection, since to meet one again takes a quarter of a second."""

_MEMORY = struct.Struct("<?I")
"""What stands before the agent's metadata: the kind of memory in which the sender's blocks lie."""

_SHORTEST_PAUSE_S = 20e-6
_LONGEST_PAUSE_S = 1e-3


@dataclass(slots=True, eq=False)
class _Peer:
    name: str
    memory: MemoryKind
    connections: int = 0
    failed: bool = False


class NixlPayload:
    """A `Payload`: one agent with the whole cache registered. UCX takes its settings from the environment.

    Raises ConfigError where the package is missing or cannot be used.
    """

    name = "nixl"

    def __init__(self, cache: BlockBytes) -> None:
        package = import_nixl()
        # its memory is registered for as long as the agent lives
        self._cache = cache
        self._addresses = struct.Struct(f"<{2 * cache.layout.num_layers}Q")
        self._memory = cache.memory
        self._lock = Lock()
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()
        try:
            strict = package.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            config = package.nixl_agent_config(backends=["UCX"], sync_mode=strict)
            self._agent: Any = package.nixl_agent(uuid.uuid4().hex, config)
            regions = [(address, num_bytes, self._memory.device, "") for address, num_bytes in cache.regions()]
            self._agent.register_memory(self._agent.get_reg_descs(regions, _name_of(self._memory)))
            kind = _MEMORY.pack(self._memory.on_gpu, self._memory.device)
            self.metadata: bytes = kind + self._agent.get_agent_metadata()
        # the classes of its errors have no base of their own
        except Exception as error:
            raise ConfigError(f"transfer.transport is 'nixl', which does not start: {error!r}") from error

    def after_header(self, block: OpenBlock) -> list[memoryview]:
        """See Payload: the address of each piece, 8 bytes; their lengths follow from the layout."""
        return [memoryview(self._addresses.pack(*(address for address, _ in block.pieces)))]

    def open(self, metadata: bytes) -> NixlSource:
        """See Payload."""
        with self._lock:
            peer = self._peers.get(metadata)
            if peer is None:
                try:
                    memory = MemoryKind(*_MEMORY.unpack_from(metadata))
                    peer = _Peer(self._agent.add_remote_agent(metadata[_MEMORY.size :]).decode(), memory)
                except Exception as error:
                    raise TransferError(f"the sender's NIXL metadata cannot be used: {error!r}") from error
                self._peers[metadata] = peer
            peer.connections += 1
        return NixlSource(self, metadata, peer)

    def close(self, metadata: bytes, peer: _Peer) -> None:
        """One connection less; forget the sender if it failed, or others that were idle for longest."""
        with self._lock:
            peer.connections -= 1
            self._peers.move_to_end(metadata)
            idle = [key for key, other in self._peers.items() if not other.connections]
            surplus = idle[: max(0, len(idle) - MOST_IDLE)]
            failed = [metadata] if peer.failed and not peer.connections and metadata not in surplus else []
            for key in [*surplus, *failed]:
                name = self._peers.pop(key).name
                # one that is gone may be unknown by now
                with suppress(Exception):
                    self._agent.remove_remote_agent(name)

    def receive_addresses(self, sock: socket.socket) -> tuple[int, ...]:
        """What `after_header` made. Raises TransferError, OSError."""
        return self._addresses.unpack(receive_exactly(sock, self._addresses.size))

    def read(self, peer: _Peer, sock: socket.socket, addresses: tuple[int, ...], block: OpenBlock) -> None:
        """Read the sender's memory into the block; returns or raises only when nothing is written there any more.

        If that takes longer than the socket's timeout, the connection is cut first. Raises TransferError.
        """
        deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        pause, late = _SHORTEST_PAUSE_S, False
        agent = self._agent
        try:
            here, there = [
                agent.get_xfer_descs([(*piece, memory.device) for piece in pieces], _name_of(memory))
                for memory, pieces in (
                    (self._memory, block.pieces),
                    (peer.memory, [(at, size) for at, (_, size) in zip(addresses, block.pieces, strict=True)]),
                )
            ]
            transfer = agent.initialize_xfer("READ", here, there, peer.name)
            state = agent.transfer(transfer)
            while state == "PROC":
                if not late and time.monotonic() > deadline:
                    late = True
                    cut(sock)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                state = agent.check_xfer_state(transfer)
            agent.release_xfer_handle(transfer)
        except Exception as error:
            peer.failed = True
            raise TransferError(f"NIXL cannot read the sender's memory: {error!r}") from error
        if state != "DONE" or late:
            peer.failed = True
            raise TransferError("NIXL took too long" if late else f"NIXL ended a read with {state}")


class NixlSource:
    """A `Source`."""

    def __init__(self, payload: NixlPayload, metadata: bytes, peer: _Peer) -> None:
        self._payload = payload
        self._metadata = metadata
        self._peer = peer

    def fill(self, sock: socket.socket, block: OpenBlock) -> None:
        """See Source. A sender that neither answers nor dies holds this until it does one of both."""
        addresses = self._payload.receive_addresses(sock)
        self._payload.read(self._peer, sock, addresses, block)
        block.load()

    def keep(self, block: OpenBlock) -> None:
        """See Source; it was read into the block."""

    def skip(self, sock: socket.socket, num_bytes: int) -> None:
        """See Source."""
        self._payload.receive_addresses(sock)

    def close(self) -> None:
        """See Source."""
        self._payload.close(self._metadata, self._peer)


def import_nixl() -> Any:
    """The package. Raises ConfigError that says how to install it."""
    try:
        package = importlib.import_module("nixl_cu12")
    except ImportError as error:
        raise ConfigError(
            f"transfer.transport is 'nixl', and its package cannot be imported ({error}); "
            f"install it with: pip install 'baleen[nixl]', or pip install nixl-cu12"
        ) from error
    # it logs to stdout, where a rank tells its events; without a handler warnings go to stderr
    logger = logging.getLogger("nixl")
    logger.handlers.clear()
    logger.setLevel(logging.WARNING)
    logger.propagate = True
    return package


def _name_of(memory: MemoryKind) -> str:
    return "VRAM" if memory.on_gpu else "DRAM"
