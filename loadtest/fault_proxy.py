"""A TCP proxy that misbehaves on demand: holds, delays, cuts, resets, corrupts, goes half-open, refuses.

It stands where two processes talk: between a router and a rank, or between two ranks. Directions are seen from
whoever connects: `up` is to the target. Every fault that took effect is counted, so that a test can prove that it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
Kind = Literal["hold", "cut", "reset", "corrupt", "half_open"]

_CHUNK_BYTES = 1 << 16
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens once, to the first connection that is about to pass byte `at_byte` in `direction`.

    Bytes before it have passed; the byte itself is inverted (corrupt), or is the first that does not pass.
    """

    kind: Kind
    at_byte: int = 0
    direction: Direction = "up"


@dataclass(slots=True)
class Counts:
    """What happened so far: connections made and ended, bytes passed on, faults by kind that took effect."""

    connections: int = 0
    ended: int = 0
    bytes: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    faults: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind.__args__, 0))  # type: ignore[attr-defined]


class _Link:
    """One connection: the two sockets and how many bytes passed each way. open: bytes may pass."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self.open = asyncio.Event()
        self.open.set()
        self.over = asyncio.Event()
        self.swallows = False

    def writer(self, direction: Direction) -> asyncio.StreamWriter:
        return self.far if direction == "up" else self.near

    def end(self, *, reset: bool = False) -> None:
        for writer in (self.near, self.far):
            _close(writer, reset=reset)
        self.over.set()


class FaultProxy:
    """Listens on `listen` and passes on to `target`, both `host:port`; one event loop runs it."""

    def __init__(self, listen: str, target: str) -> None:
        self._listen = listen
        self.target = target
        self.counts = Counts()
        self.delay_s = 0.0
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._holds = False
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> FaultProxy:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        """Where it listens, with the port that it got."""
        return self._listen

    @property
    def num_links(self) -> int:
        """Connections that stand."""
        return len(self._links)

    @property
    def num_held(self) -> int:
        """Connections of which nothing passes until `release`."""
        return sum(not link.open.is_set() for link in self._links)

    async def accept(self) -> None:
        """Listen, from the start or again after `refuse`."""
        if self._server is None:
            host, _, port = self._listen.rpartition(":")
            self._server = await asyncio.start_server(self._serve, host, int(port))
            self._listen = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def refuse(self) -> None:
        """Listen no more: who connects is refused by the system. Connections that stand are left alone."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()

    def plan(self, *faults: Fault) -> None:
        """Let these happen, each once."""
        self._faults += faults

    def forget_plans(self) -> None:
        """What was planned and has not happened will not."""
        self._faults.clear()

    def hold(self) -> None:
        """Let nothing pass any more, on any connection, until `release`; nobody is told."""
        self._holds = True
        for link in self._links:
            self._hold(link)

    def release(self) -> None:
        """Pass on what was held, and what comes."""
        self._holds = False
        for link in self._links:
            link.open.set()

    def cut(self) -> None:
        """End every connection in order: both ends read the end of the stream."""
        self._end_all("cut")

    def reset(self) -> None:
        """End every connection by RST."""
        self._end_all("reset")

    def half_open(self) -> None:
        """Let go of every target without telling the near end, whose bytes go nowhere from now on."""
        for link in list(self._links):
            self._half_open(link)

    async def until(self, condition: Callable[[Counts], bool], timeout_s: float) -> None:
        """Wait until `condition(counts)` holds. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: condition(self.counts))

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            # as if the target itself had refused: the near end reads a reset
            _close(near, reset=True)
            return
        link = _Link(near, far)
        self._links.add(link)
        self.counts.connections += 1
        if self._holds:
            self._hold(link)
        await self._note()
        pumps = [
            asyncio.create_task(self._pump(link, "up", near_reader)),
            asyncio.create_task(self._pump(link, "down", far_reader)),
        ]
        over = asyncio.create_task(link.over.wait())
        try:
            await asyncio.wait([*pumps, over], return_when=asyncio.FIRST_COMPLETED)
            if not link.over.is_set():
                # one way has ended: the other may have something left to pass
                await asyncio.wait([*pumps, over], timeout=1.0)
        finally:
            for waiting in (*pumps, over):
                waiting.cancel()
            await asyncio.gather(*pumps, over, return_exceptions=True)
            link.end()
            self._links.discard(link)
            self.counts.ended += 1
            await self._note()

    async def _pump(self, link: _Link, direction: Direction, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while data:
                    data = await self._pass(link, direction, data)
            await self._until_loud(link, direction)
            with contextlib.suppress(OSError, RuntimeError):
                link.writer(direction).write_eof()
        except OSError:
            await self._until_loud(link, direction)
            link.end(reset=True)

    async def _until_loud(self, link: _Link, direction: Direction) -> None:
        """The end of one side is told to the other, unless nothing passes any more."""
        await link.open.wait()
        if link.swallows and direction == "down":
            await link.over.wait()

    async def _pass(self, link: _Link, direction: Direction, data: bytes) -> bytes:
        """Pass `data` on up to the next fault, which happens; what is left then."""
        await link.open.wait()
        if link.swallows:
            return b""
        start = link.passed[direction]
        due = [fault for fault in self._faults if fault.direction == direction and fault.at_byte < start + len(data)]
        fault = min(due, key=lambda fault: fault.at_byte, default=None)
        count = len(data) if fault is None else max(0, fault.at_byte - start)
        await self._write(link, direction, data[:count])
        rest = data[count:]
        if fault is None:
            return rest
        self._faults.remove(fault)
        if fault.kind == "corrupt":
            self.counts.faults["corrupt"] += 1
            await self._write(link, direction, bytes([rest[0] ^ 0xFF]))
            return rest[1:]
        if fault.kind == "hold":
            self._hold(link)
        elif fault.kind == "half_open":
            self._half_open(link)
        else:
            # what was passed before the fault must arrive
            with contextlib.suppress(OSError):
                await link.writer(direction).drain()
            self._end(link, fault.kind)
            rest = b""
        await self._note()
        return rest

    async def _write(self, link: _Link, direction: Direction, data: bytes) -> None:
        if not data:
            return
        writer = link.writer(direction)
        writer.write(data)
        await writer.drain()
        link.passed[direction] += len(data)
        self.counts.bytes[direction] += len(data)
        await self._note()

    def _hold(self, link: _Link) -> None:
        if link.open.is_set():
            link.open.clear()
            self.counts.faults["hold"] += 1

    def _half_open(self, link: _Link) -> None:
        link.swallows = True
        link.open.set()
        self.counts.faults["half_open"] += 1
        _close(link.far, reset=True)

    def _end(self, link: _Link, kind: Kind) -> None:
        self.counts.faults[kind] += 1
        link.end(reset=kind == "reset")

    def _end_all(self, kind: Kind) -> None:
        for link in list(self._links):
            self._end(link, kind)

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
