"""One call of an endpoint that answers at length: who calls, whether they are still there, and how failure is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any, Protocol

from baleen.errors import BaleenError
from baleen.ids import new_request_id
from router.gateway.auth import CALLER, Caller, Receive
from router.gateway.connection import EVENT_STREAM, Connection, Headers
from router.gateway.core import Core
from router.gateway.dialect import Shape
from router.gateway.refusal import dialect_of, refusal, status_of

Scope = MutableMapping[str, Any]


class Sink(Protocol):
    """Where the bytes of an answer go: a connection, or a stream that connections take them from."""

    @property
    def started(self) -> bool: ...  # noqa: D102

    async def start(self, status: int, headers: Headers) -> None: ...  # noqa: D102

    async def write(self, data: bytes, *, last: bool = False) -> None: ...  # noqa: D102

    async def events(self, frames: Sequence[bytes], *, last: bool = False) -> None: ...  # noqa: D102


class Call:
    """What every such call has. gone: its client left, takes nothing, or came back on another connection."""

    def __init__(self, core: Core, scope: Scope, connection: Connection, endpoint: str) -> None:
        """endpoint: its name, in counts and logs."""
        self.core = core
        self.scope = scope
        self.connection = connection
        self.endpoint = endpoint
        self.request_id: str = new_request_id()
        self.began = core.clock.now()
        self.gone = False
        self.status = 500

    @contextlib.asynccontextmanager
    async def watched(self, receive: Receive, task: asyncio.Task[Any]) -> AsyncIterator[None]:
        """For the block: the task is cancelled once its client has gone or takes nothing any more."""

        def leave(count: str) -> None:
            if not self.gone:
                self.gone = True
                setattr(self.core.meters, count, getattr(self.core.meters, count) + 1)
                task.cancel()

        watchers = [
            asyncio.create_task(self.connection.watch(receive, lambda: leave("disconnects"))),
            asyncio.create_task(self.connection.watch_stall(self.core.http.stall_s, lambda: leave("stalls"))),
        ]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def fail(self, error: Exception, shape: Shape | None, sink: Sink) -> None:
        """Tell the client what went wrong; shape: of its stream, in which it is told if that has begun."""
        if not isinstance(error, BaleenError):
            error = self._fault(error)
        self.status = status_of(error)
        if sink.started and shape is not None:
            await sink.events(shape.fail(self.status, error), last=True)
            return
        headers, body = refusal(self.status, error, dialect_of(self.scope["path"]), request_id=self.request_id)
        if not sink.started:
            await sink.start(self.status, [*headers, *self.headers()])
        await sink.write(body, last=True)

    def headers(self) -> Headers:
        """What every answer has."""
        taken_ms = round((self.core.clock.now() - self.began) * 1000)
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", str(taken_ms).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]

    def stream_headers(self) -> Headers:
        """What every streamed answer has."""
        return [*EVENT_STREAM, *self.headers()]

    def count(self, endpoint: str, *, left: bool) -> None:
        """Count it, by its status; left: the client went before the end."""
        self.core.meters.requests[endpoint, "4xx" if left else f"{self.status // 100}xx"] += 1

    @property
    def caller(self) -> Caller:
        """Who calls."""
        caller: Caller = self.scope[CALLER]
        return caller

    @property
    def owner(self) -> str:
        """Whose streams the call may go on with: those of the same key."""
        return self.caller.key.key_id if self.caller.key is not None else ""

    def _fault(self, error: Exception) -> BaleenError:
        """What a client is told of a fault of ours: never its text, which may be somebody's."""
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
        self.core.log.error(
            "request failed by a fault of the gateway",
            request_id=self.request_id,
            error=type(error).__name__,
            where=where,
        )
        return BaleenError("internal error of the gateway; its log has more")
