"""The line to the router: one stream that carries all requests of a gateway, opened with the first of them, and anew
after it broke or its router left.

One task reads it and hands out what has come, so that no client of the gateway may make it wait: of a request whose
news are not taken a few wait here, and the router is asked to hold the others back.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable

import grpc.aio
from google.protobuf.message import DecodeError

from baleen.errors import BaleenError, DeadlineExceeded, NotReady
from baleen.v1 import inference_pb2, inference_pb2_grpc
from baleen.wire.errors import error_from_failure, error_from_rpc

MOST_WAITING = 64
"""Deltas of one request that wait; with more the router is asked to pause. What is on its way still comes."""

_FEW = 4
"""With more that wait, a delta is copied: it would keep the message that it came in, with everybody else's news."""

_LEAD_S = 0.1
"""How much earlier than here a deadline passes at the router, whose word says more."""

_MOST_STREAMS = 4
"""Streams on which one request is begun, where routers leave before they have read it."""


_LOST = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
"""With these ends a stream whose process or connection ended; the others are a word of the router."""


class RouterLost(NotReady):
    """The stream ended, and with it whatever was asked on it: another router can go on with that."""


class Line:
    """To one router, for one event loop."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self._stub = stub
        self._session: _Session | None = None
        self._sessions: set[_Session] = set()

    def start(
        self, request: inference_pb2.GenerateRequest, *, tenant: str, traceparent: str, deadline_s: float
    ) -> Strand:
        """Begin a request. Whoever has the result must close it."""
        strand = Strand(
            inference_pb2.Start(request=request, tenant=tenant, traceparent=traceparent), deadline_s=deadline_s
        )
        self._begin(strand)
        return strand

    async def close(self) -> None:
        """End it, and whatever is running on it."""
        await asyncio.gather(*(session.close() for session in list(self._sessions)))

    def _begin(self, strand: Strand) -> None:
        session = self._session
        if session is None or not session.takes_more:
            session = self._session = _Session(self._stub, self._begin, self._sessions.discard)
            self._sessions.add(session)
        session.begin(strand)


class _Session:
    """One stream, from its opening to its loss."""

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        begin_again: Callable[[Strand], None],
        on_end: Callable[[_Session], None],
    ) -> None:
        self.takes_more = True
        self._begin_again = begin_again
        self._strands: dict[int, Strand] = {}
        self._numbers = itertools.count()
        self._outbox: asyncio.Queue[inference_pb2.GenerateManyRequest | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._follow(stub), name="line to the router")
        self._task.add_done_callback(lambda _: on_end(self))

    def begin(self, strand: Strand) -> None:
        """Ask the router for a request."""
        number = next(self._numbers)
        self._strands[number] = strand
        self.say(inference_pb2.GenerateManyRequest(start=strand.begin(self, number)))

    def say(self, message: inference_pb2.GenerateManyRequest) -> None:
        """Have a message written."""
        self._outbox.put_nowait(message)

    def forget(self, number: int) -> None:
        """Hand out no more news of a request."""
        self._strands.pop(number, None)

    async def close(self) -> None:
        """End it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        cause = BaleenError("the stream to the router ended by a fault of the gateway")
        has_left = False
        call = stub.GenerateMany(self._outgoing())
        try:
            while isinstance(message := await call.read(), inference_pb2.GenerateManyResponse):
                self._take(message)
            cause = RouterLost("the router has left")
            has_left = True
        except grpc.aio.AioRpcError as error:
            cause = error_from_rpc(error)
            if error.code() in _LOST:
                cause = RouterLost(f"the router is lost: {cause}")
        except DecodeError as error:
            cause = BaleenError(f"what the router sends is not of this protocol: {error}")
        finally:
            self.takes_more = False
            self._outbox.put_nowait(None)
            strands, self._strands = self._strands, {}
            for strand in strands.values():
                # a router that leaves ends its stream after all that it has read
                if has_left and strand.may_begin_again:
                    self._begin_again(strand)
                else:
                    strand.end(cause)
            call.cancel()

    def _take(self, message: inference_pb2.GenerateManyResponse) -> None:
        if message.leaving:
            self.takes_more = False
        strands = self._strands
        for event in message.events:
            strand = strands.get(event.number)
            if strand is None:
                continue
            if event.HasField("delta"):
                strand.put(event.delta)
            elif event.HasField("admitted"):
                strand.admit()
            else:
                del strands[event.number]
                strand.end(error_from_failure(event.failure) if event.HasField("failure") else None)

    async def _outgoing(self) -> AsyncIterator[inference_pb2.GenerateManyRequest]:
        # None ends it: the library waits for the next message with a task that nobody else ends
        while (message := await self._outbox.get()) is not None:
            yield message


class Strand:
    """One request, from its start to `close`. One reader."""

    _session: _Session
    _number: int

    def __init__(self, start: inference_pb2.Start, *, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._start: inference_pb2.Start | None = start
        self._num_streams = 0
        self._deadline = loop.time() + deadline_s
        self._timer = loop.call_later(deadline_s, self._expire)
        self._deltas: list[inference_pb2.Delta] = []
        self._is_admitted = False
        self._is_paused = False
        self._has_ended = False
        self._failure: BaleenError | None = None
        self._arrival: asyncio.Future[None] | None = None

    async def admitted(self) -> None:
        """Wait until the router took the request. Raises what it refused it with."""
        while not self._is_admitted:
            if self._has_ended:
                raise self._failure or BaleenError("the router ended a request without an answer")
            await self._news()

    async def deltas(self) -> list[inference_pb2.Delta]:
        """What has come since the last time, once there is something; empty at the end. Raises what it failed with."""
        while not self._deltas:
            if self._has_ended:
                if self._failure is not None:
                    raise self._failure
                return []
            await self._news()
        deltas, self._deltas = self._deltas, []
        if self._is_paused:
            self._is_paused = False
            self._say(resume=inference_pb2.Resume(number=self._number))
        return deltas

    def close(self) -> None:
        """End it, if it has not ended: the ranks stop."""
        if not self._has_ended:
            self._session.forget(self._number)
            self._say(cancel=inference_pb2.Cancel(number=self._number))
            self.end(None)

    @property
    def may_begin_again(self) -> bool:
        """Whether it can be begun on another stream, if the router has not read it on this one."""
        return self._start is not None and self._num_streams < _MOST_STREAMS

    def begin(self, session: _Session, number: int) -> inference_pb2.Start:
        """What asks for it on a stream."""
        assert self._start is not None, "it was admitted before"
        self._session, self._number = session, number
        self._num_streams += 1
        left_s = self._deadline - asyncio.get_running_loop().time()
        self._start.number = number
        self._start.remaining_s = left_s - min(_LEAD_S, left_s / 10)
        return self._start

    def admit(self) -> None:
        """The router took it."""
        self._is_admitted = True
        self._start = None
        self._wake()

    def put(self, delta: inference_pb2.Delta) -> None:
        """Something new."""
        num_waiting = len(self._deltas)
        if num_waiting >= _FEW:
            copy = inference_pb2.Delta()
            copy.CopyFrom(delta)
            delta = copy
            if num_waiting >= MOST_WAITING and not self._is_paused:
                self._is_paused = True
                self._say(pause=inference_pb2.Pause(number=self._number))
        self._deltas.append(delta)
        if self._arrival is not None:
            self._wake()

    def end(self, failure: BaleenError | None) -> None:
        """Nothing more comes."""
        self._has_ended = True
        self._failure = failure
        self._timer.cancel()
        self._wake()

    def _expire(self) -> None:
        if not self._has_ended:
            self.close()
            self._failure = DeadlineExceeded("the deadline passed, and the router did not say so")

    def _say(self, **message: object) -> None:
        self._session.say(inference_pb2.GenerateManyRequest(**message))  # type: ignore[arg-type]

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    async def _news(self) -> None:
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival
