"""Streams that a client may come back to: what was sent and what is to be sent of each, for a while, in bounded memory.

The work behind a stream goes on while nobody is connected. It waits while the stream is full: what a connection has
taken makes room, unless nobody is connected, for then all of it may be asked for again.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from baleen.errors import BaleenError, UnknownName
from router.gateway.connection import Connection, Headers

EACH_BYTES = 4 << 20
"""What one stream keeps at most."""

_EVENT_BYTES = 160
_STREAM_BYTES = 4096
"""What an event takes beside its text, its id included, and a stream beside its events, about."""

_ID = re.compile(r"([0-9a-f]{8})-([0-9a-f]{24})-([0-9]{1,12})")
_KEEP_ALIVE = b": keep-alive\n"
"""A line alone: clients that know an id take an empty line for the end of an event."""


class TakenOver(BaleenError):
    """Another connection goes on with the stream."""


class Streams:
    """All of one gateway. name: of this life of it, the beginning of every event's id."""

    def __init__(self, *, keep_s: float, max_bytes: int) -> None:
        """keep_s: how long a stream waits for its client. max_bytes: of all streams together."""
        self.keep_s = keep_s
        self.max_bytes = max_bytes
        self.name = secrets.token_hex(4)
        self.num_bytes = 0
        self.num_resumed = 0
        self.room = asyncio.Event()
        self._streams: dict[str, Stream] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    @property
    def num_streams(self) -> int:
        """Streams that are kept, ended ones too."""
        return len(self._streams)

    def open(self, owner: str, endpoint: str) -> Stream:
        """A new stream. owner, endpoint: of those who come back to it, the same are asked for."""
        self._make_room(_STREAM_BYTES)
        stream = Stream(self, secrets.token_hex(12), owner, endpoint)
        self._streams[stream.stream_id] = stream
        self.num_bytes += _STREAM_BYTES
        return stream

    def find(self, event_id: str, owner: str, endpoint: str) -> tuple[Stream, int]:
        """The stream of an event, and the event's number in it.

        Raises UnknownName: whether a stream is somebody else's, over or never was cannot be told apart.
        """
        match = _ID.fullmatch(event_id)
        if match is not None and match[1] != self.name:
            raise UnknownName(
                "The stream of this Last-Event-ID was begun at another gateway, or before this one was started anew; "
                "only the gateway that began a stream goes on with it."
            )
        stream = self._streams.get(match[2]) if match is not None else None
        if match is None or stream is None or (stream.owner, stream.endpoint) != (owner, endpoint):
            raise UnknownName(
                f"No stream of yours has this Last-Event-ID here: streams are kept for {self.keep_s:g} s after a "
                "connection ended, where the request said `resumable`."
            )
        number = int(match[3])
        if not stream.num_dropped <= number <= stream.last:
            raise UnknownName(
                f"The stream of this Last-Event-ID cannot go on after event {number}: events {stream.num_dropped + 1} "
                f"to {stream.last} are kept."
            )
        self.num_resumed += 1
        return stream, number

    def begin(self, stream: Stream, job: asyncio.Task[None]) -> None:
        """Have the work of a stream done."""
        stream.job = job
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    def takes(self, stream: Stream, size: int) -> bool:
        """Whether the stream may keep so much more; makes room as far as that loses nothing that somebody waits for."""
        size += _EVENT_BYTES
        self._make_room(size)
        while stream.num_bytes + size > EACH_BYTES or self.num_bytes + size > self.max_bytes:
            if not stream.drop_first():
                return stream.is_empty_and_read
        return True

    def _make_room(self, size: int) -> None:
        """Forget answers that have ended, the oldest first, until there is room for so much or none is left."""
        if self.num_bytes + size > self.max_bytes:
            for other in [other for other in self._streams.values() if other.is_idle]:
                other.forget()
                if self.num_bytes + size <= self.max_bytes:
                    break

    def count(self, size: int) -> None:
        """So many bytes more, or less."""
        self.num_bytes += size
        if size < 0:
            self.room.set()

    def remove(self, stream: Stream) -> None:
        """Know it no more."""
        if self._streams.pop(stream.stream_id, None) is not None:
            self.count(-_STREAM_BYTES - stream.num_bytes)

    async def close(self) -> None:
        """End all work that goes on."""
        for stream in list(self._streams.values()):
            stream.forget()
        await asyncio.gather(*self._jobs, return_exceptions=True)


class Stream:
    """One answer: a sink of whoever makes it, and a source for one connection at a time.

    last: number of the newest event; the first is 1. num_dropped: events that are not kept any more.
    """

    def __init__(self, streams: Streams, stream_id: str, owner: str, endpoint: str) -> None:
        self.stream_id = stream_id
        self.owner = owner
        self.endpoint = endpoint
        self.job: asyncio.Task[None] | None = None
        self.num_bytes = 0
        self.num_dropped = 0
        self._streams = streams
        self._prefix = f"id: {streams.name}-{stream_id}-".encode()
        self._head: tuple[int, Headers] | None = None
        self._refusal = b""
        self._events: deque[bytes] = deque()
        self._sizes: deque[int] = deque()
        self._num_taken = 0
        self._ended = False
        self._news = asyncio.Event()
        self._reader: asyncio.Task[object] | None = None
        self._connection: Connection | None = None
        self._taken_over: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self.num_dropped + len(self._events)

    @property
    def ended(self) -> bool:
        """Whether its last event is there."""
        return self._ended

    @property
    def is_idle(self) -> bool:
        """It has ended, and nobody is connected."""
        return self._ended and self._reader is None

    @property
    def is_empty_and_read(self) -> bool:
        """It keeps nothing, and somebody is there to take what comes."""
        return not self._events and self._reader is not None

    @property
    def started(self) -> bool:
        """Whether a client may have seen a status."""
        return self._head is not None or (self._connection is not None and self._connection.started)

    async def start(self, status: int, headers: Headers) -> None:
        """The status line, once."""
        if self._head is None:
            self._head = (status, headers)
            self._news.set()

    async def events(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        """Some server-sent events; waits for room."""
        for frame in frames:
            while not self._streams.takes(self, len(frame)):
                # who makes room learns of those before it
                self._news.set()
                self._streams.room.clear()
                await self._streams.room.wait()
            self._events.append(b"%b%d\n%b" % (self._prefix, self.last + 1, frame))
            self._sizes.append(len(frame) + _EVENT_BYTES)
            self.num_bytes += self._sizes[-1]
            self._streams.count(self._sizes[-1])
        self._ended = last
        self._news.set()

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """The body of a refusal, which nobody comes back to."""
        self._refusal, self._ended = data, last
        self._news.set()

    def drop_first(self) -> bool:
        """Keep the oldest event no more, if a connection that still stands has taken it."""
        if self._reader is None or self.num_dropped >= self._num_taken:
            return False
        self._events.popleft()
        size = self._sizes.popleft()
        self.num_dropped += 1
        self.num_bytes -= size
        self._streams.count(-size)
        return True

    async def deliver(
        self, connection: Connection, *, after: int, head: Callable[[], Headers], keep_alive_s: float
    ) -> None:
        """Send what comes after event `after`, to the end; a connection that stood before ends.

        head: headers for this connection, beside those of the answer. Raises TakenOver when another connection comes.
        """
        task = asyncio.current_task()
        assert task is not None
        self._take_over(task, connection)
        self._num_taken = after
        named = (b"x-last-event-id", self._prefix.removeprefix(b"id: ") + str(after).encode())
        alive = asyncio.create_task(connection.keep_alive(_KEEP_ALIVE, lambda: [*head(), named], every_s=keep_alive_s))
        try:
            while self._head is None:
                await self._look()
            status, headers = self._head
            is_refusal = status != 200
            await connection.start(status, headers if is_refusal else [*head(), named])
            while is_refusal or not (self._ended and self._num_taken == self.last):
                news = [self._refusal] if is_refusal else list(islice(self._events, self._unread, None))
                if news:
                    ended = self._ended
                    await connection.write(b"".join(news), last=ended)
                    if is_refusal:
                        break
                    self._num_taken += len(news)
                    self._streams.room.set()
                else:
                    await self._look()
            if not connection.ended:
                await connection.write(b"", last=True)
        except asyncio.CancelledError:
            if task not in self._taken_over:
                raise
            task.uncancel()
            raise TakenOver("another connection goes on with this stream") from None
        finally:
            alive.cancel()
            self._taken_over.discard(task)
            if self._reader is task:
                self._leave()

    def forget(self) -> None:
        """End it: its work stops, and nothing of it is kept."""
        if self.job is not None and not self.job.done():
            self.job.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._streams.remove(self)

    @property
    def _unread(self) -> int:
        return self._num_taken - self.num_dropped

    async def _look(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _take_over(self, task: asyncio.Task[object], connection: Connection) -> None:
        if self._reader is not None:
            self._taken_over.add(self._reader)
            self._reader.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._reader, self._connection = task, connection

    def _leave(self) -> None:
        """Nobody is connected any more."""
        self._reader = None
        if not self.started or (self._head is not None and self._head[0] != 200):
            # nobody can know of it
            self.forget()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._streams.keep_s, self.forget)
