"""One stream of a client that carries many requests: each is served beside the others, and their news leave together.

Bounded by what is asked for: of each request a few deltas wait here for the stream, and while they do, or while the
client has paused it, whatever makes its deltas waits and joins what comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from baleen.errors import BaleenError, InvalidRequest
from baleen.v1 import common_pb2, inference_pb2
from baleen.wire.errors import error_to_failure

MOST_DELTAS = 16
"""Deltas of one request that wait for the stream; its next one waits for room."""

BATCH_BYTES = 1 << 20
"""Size from which on a message is full; the last event may make it larger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a client says of a request beside it. remaining_s: until its deadline; None: it has none of its own."""

    tenant: str
    traceparent: str
    remaining_s: float | None


class Outlet(Protocol):
    """Where the news of one request go. Both wait while its client takes nothing."""

    async def admitted(self, message: inference_pb2.Admitted) -> None: ...  # noqa: D102

    async def delta(self, message: inference_pb2.Delta) -> None: ...  # noqa: D102


Serve = Callable[[inference_pb2.GenerateRequest, Terms, Outlet], Awaitable[None]]
"""Serves one request to its end. Raises the BaleenError that its client is to be told."""


class ClientSession:
    """One stream, from its opening to its end. Everything runs in one event loop."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._outbox = Outbox()
        self._requests: dict[int, _Request] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_number = -1
        self._takes_more = True

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    async def run(
        self,
        messages: AsyncIterator[inference_pb2.GenerateManyRequest],
        write: Callable[[inference_pb2.GenerateManyResponse], Awaitable[Any]],
    ) -> None:
        """Serve until there is nothing more to say. Cancelled, it cancels all requests.

        Raises InvalidRequest on a message that breaks the rules of the stream.
        """
        reading = asyncio.create_task(self._read(messages))
        try:
            while (message := await self._outbox.next()) is not None:
                await write(message)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(reading, *self._tasks, return_exceptions=True)

    def leave(self) -> None:
        """Say that new requests belong elsewhere, and end after the last of those that came."""
        self._outbox.say_leaving()
        self._take_no_more()

    async def _read(self, messages: AsyncIterator[inference_pb2.GenerateManyRequest]) -> None:
        try:
            async for message in messages:
                self._obey(message)
        except DecodeError as error:
            self._outbox.finish()
            raise InvalidRequest(f"the stream is not of this protocol: {error}", field="message") from error
        except BaleenError:
            self._outbox.finish()
            raise
        self._take_no_more()

    def _obey(self, message: inference_pb2.GenerateManyRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "start":
            self._start(message.start)
            return
        if kind is None:
            raise InvalidRequest("the message says nothing that this version knows", field="message")
        request = self._requests.get(getattr(message, kind).number)
        if request is None:
            return
        if kind == "cancel":
            del self._requests[request.number]
            request.task.cancel()
            self._end_if_done()
        elif kind == "pause":
            request.pause()
        else:
            request.resume()

    def _start(self, start: inference_pb2.Start) -> None:
        if start.number <= self._last_number:
            raise InvalidRequest(
                f"number is {start.number}, must be above {self._last_number}, which was used before", field="number"
            )
        self._last_number = start.number
        request = _Request(start.number, self._outbox)
        self._requests[start.number] = request
        request.task = asyncio.create_task(self._work(request, start))
        self._tasks.add(request.task)
        request.task.add_done_callback(self._tasks.discard)

    async def _work(self, request: _Request, start: inference_pb2.Start) -> None:
        terms = Terms(
            tenant=start.tenant,
            traceparent=start.traceparent,
            remaining_s=start.remaining_s if start.HasField("remaining_s") else None,
        )
        failure: common_pb2.Failure | None = None
        try:
            await self._serve(start.request, terms, request)
        except BaleenError as error:
            failure = error_to_failure(error)
        if self._requests.pop(request.number, None) is None:
            return
        if failure is not None:
            self._outbox.put(request, failure=failure)
        else:
            self._outbox.put(request, finished=inference_pb2.Finished())
        self._end_if_done()

    def _take_no_more(self) -> None:
        self._takes_more = False
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._takes_more and not self._requests:
            self._outbox.finish()


class _Request:
    """The outlet of one request."""

    task: asyncio.Task[None]

    def __init__(self, number: int, outbox: Outbox) -> None:
        self.number = number
        self.num_waiting = 0
        self._outbox = outbox
        self._paused: asyncio.Future[None] | None = None

    async def admitted(self, message: inference_pb2.Admitted) -> None:
        """Its first event."""
        self._outbox.put(self, admitted=message)

    async def delta(self, message: inference_pb2.Delta) -> None:
        """One more, once the client takes them and those before have left."""
        while self._paused is not None or self.num_waiting >= MOST_DELTAS:
            await (self._paused if self._paused is not None else self._outbox.room())
        self._outbox.put(self, delta=message)

    def pause(self) -> None:
        """Hold deltas back."""
        if self._paused is None:
            self._paused = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """Let them go."""
        if self._paused is not None:
            paused, self._paused = self._paused, None
            if not paused.done():
                paused.set_result(None)


@dataclass(slots=True, eq=False)
class _Batch:
    """A message that is put together. sources: of its events."""

    message: inference_pb2.GenerateManyResponse = field(default_factory=inference_pb2.GenerateManyResponse)
    sources: list[_Request] = field(default_factory=list)
    num_bytes: int = 0


class Outbox:
    """Events of all requests of one stream that wait for it: those of a step of the ranks make one message."""

    def __init__(self) -> None:
        self._batches: deque[_Batch] = deque()
        self._arrival = asyncio.Event()
        self._room: asyncio.Future[None] | None = None
        self._finished = False

    def put(self, source: _Request, **news: Any) -> None:
        """Add one event."""
        batch = self._open_batch()
        event = batch.message.events.add(number=source.number, **news)
        batch.num_bytes += event.ByteSize()
        batch.sources.append(source)
        source.num_waiting += 1

    def say_leaving(self) -> None:
        """Tell the client that the router leaves."""
        self._open_batch().message.leaving = True

    def finish(self) -> None:
        """Nothing comes any more: `next` gives None after what waits."""
        self._finished = True
        self._arrival.set()

    async def room(self) -> None:
        """Return once a message has been taken."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        # one waiter that gives up must not end the wait of the others
        await asyncio.shield(self._room)

    async def next(self) -> inference_pb2.GenerateManyResponse | None:
        """The next message to write; None at the end."""
        while not self._batches:
            if self._finished:
                return None
            self._arrival.clear()
            await self._arrival.wait()
        batch = self._batches.popleft()
        for source in batch.sources:
            source.num_waiting -= 1
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
        return batch.message

    def _open_batch(self) -> _Batch:
        if not self._batches or self._batches[-1].num_bytes >= BATCH_BYTES:
            self._batches.append(_Batch())
            self._arrival.set()
        return self._batches[-1]
