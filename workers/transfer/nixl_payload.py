"""Blocks by NIXL: the sender tells addresses on the connection, and the receiver reads that memory into its own.

Nobody writes into another rank's memory, so that nothing can land late. What is read from a block that its sender has
given to somebody else meanwhile has the wrong checksum.
"""

from __future__ import annotations

import ctypes
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
from workers.cache.block_bytes import BlockBytes
from workers.transfer.protocol import cut, receive_exactly
from workers.transfer.transport import TransferError

MOST_IDLE = 128
"""Senders that are remembered without a connection, since to meet one again takes a quarter of a second."""

_SHORTEST_PAUSE_S = 20e-6
_LONGEST_PAUSE_S = 1e-3


@dataclass(slots=True, eq=False)
class _Peer:
    name: str
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
        self._addresses = struct.Struct(f"<{len(cache.views(0))}Q")
        self._lock = Lock()
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()
        try:
            strict = package.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            config = package.nixl_agent_config(backends=["UCX"], sync_mode=strict)
            self._agent: Any = package.nixl_agent(uuid.uuid4().hex, config)
            regions = [(address, num_bytes, 0, "") for address, num_bytes in cache.regions()]
            self._agent.register_memory(self._agent.get_reg_descs(regions, "DRAM"))
            self.metadata: bytes = self._agent.get_agent_metadata()
        # the classes of its errors have no base of their own
        except Exception as error:
            raise ConfigError(f"transfer.transport is 'nixl', which does not start: {error!r}") from error

    def after_header(self, views: list[memoryview]) -> list[memoryview]:
        """See Payload: the address of each piece, 8 bytes; their lengths follow from the layout."""
        return [memoryview(self._addresses.pack(*map(address_of, views)))]

    def open(self, metadata: bytes) -> NixlSource:
        """See Payload."""
        with self._lock:
            peer = self._peers.get(metadata)
            if peer is None:
                try:
                    peer = _Peer(self._agent.add_remote_agent(metadata).decode())
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

    def read(self, peer: _Peer, sock: socket.socket, addresses: tuple[int, ...], views: list[memoryview]) -> None:
        """Read the sender's memory into `views`; returns or raises only when nothing is written there any more.

        If that takes longer than the socket's timeout, the connection is cut first. Raises TransferError.
        """
        deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        pause, late = _SHORTEST_PAUSE_S, False
        agent = self._agent
        try:
            here = agent.get_xfer_descs([(address_of(view), len(view), 0) for view in views], "DRAM")
            pieces = [(address, len(view), 0) for address, view in zip(addresses, views, strict=True)]
            there = agent.get_xfer_descs(pieces, "DRAM")
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

    def fill(self, sock: socket.socket, views: list[memoryview]) -> None:
        """See Source. A sender that neither answers nor dies holds this until it does one of both."""
        addresses = self._payload.receive_addresses(sock)
        self._payload.read(self._peer, sock, addresses, views)

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


def address_of(view: memoryview) -> int:
    """Where a writable view begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
