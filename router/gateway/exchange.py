"""One request of any dialect, from its body to its last byte: charged, sent to the router, answered, settled."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from baleen.errors import BaleenError, QueueFull
from baleen.ids import new_request_id
from baleen.trace_context import trace_id_of
from router.gateway.accounts.accounts import Charge
from router.gateway.accounts.money import Usage
from router.gateway.accounts.records import Outcome
from router.gateway.ask import Ask, TokenUsage
from router.gateway.auth import CALLER, Caller, Receive, Send
from router.gateway.batch import Batch, start_batch
from router.gateway.bodies import Gone, read_object
from router.gateway.connection import EVENT_STREAM, Connection, Headers
from router.gateway.core import Core
from router.gateway.dialect import Reader, Shape
from router.gateway.refusal import dialect_of, refusal, status_of

Scope = MutableMapping[str, Any]

_JSON: Headers = [(b"content-type", b"application/json")]


class Exchange:
    """The POST endpoint of a dialect."""

    def __init__(self, core: Core, reader: Reader, *, name: str) -> None:
        """name: of the endpoint, in counts and logs."""
        self._core = core
        self._reader = reader
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        connection = Connection(send, self._core.clock)
        one = _One(self._core, self._reader, scope, connection)
        task = asyncio.current_task()
        assert task is not None
        self._core.meters.active += 1
        try:
            await one.serve(receive, task)
        except asyncio.CancelledError:
            if not one.gone:
                raise
            task.uncancel()
        finally:
            self._core.meters.active -= 1
            status = one.status if not one.gone else 499
            self._core.meters.requests[self._name, f"{status // 100}xx"] += 1
            one.note(self._name)


class _One:
    """One request. gone: its client left, or takes nothing."""

    def __init__(self, core: Core, reader: Reader, scope: Scope, connection: Connection) -> None:
        self._core = core
        self._reader = reader
        self._scope = scope
        self._connection = connection
        self._request_id: str = new_request_id()
        self._usage = TokenUsage(0, 0, 0, 0)
        self._outcome: Outcome = "failed"
        self._began = core.clock.now()
        self._streams = False
        self.gone = False
        self.status = 500

    async def serve(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        """All of it; what goes wrong becomes an answer."""
        shape: Shape | None = None
        try:
            core = self._core
            if core.meters.active > core.http.max_active:
                raise QueueFull(f"{core.http.max_active} requests are running, which is the limit of this gateway")
            body = await read_object(self._scope, receive, max_bytes=core.http.max_body_bytes)
            async with self._watched(receive, task):
                await core.prepare()
                asked, shape, self._streams = await self._reader(body, core)
                del body
                self._request_id = shape.request_id
                await self._run(asked if isinstance(asked, tuple) else (asked,), shape)
        except Gone:
            self.gone = True
        except BaleenError as error:
            await self._fail(error, shape)
        except Exception as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else ""
            # never its text: that may be the client's
            self._core.log.error(
                "request failed by a fault of the gateway",
                request_id=self._request_id,
                error=type(error).__name__,
                where=where,
            )
            await self._fail(BaleenError("internal error of the gateway; its log has more"), shape)

    def note(self, name: str) -> None:
        """Write the line of the log for this request."""
        self._core.log.info(
            "request",
            request_id=self._request_id,
            endpoint=name,
            status=499 if self.gone else self.status,
            outcome="cancelled" if self.gone else self._outcome,
            prompt_tokens=self._usage.prompt,
            cached_tokens=self._usage.cached,
            completion_tokens=self._usage.completion,
            seconds=self._core.clock.now() - self._began,
        )

    @contextlib.asynccontextmanager
    async def _watched(self, receive: Receive, task: asyncio.Task[Any]) -> AsyncIterator[None]:
        """For the block: the task is cancelled once its client has gone or takes nothing any more."""

        def leave(count: str) -> None:
            if not self.gone:
                self.gone = True
                setattr(self._core.meters, count, getattr(self._core.meters, count) + 1)
                task.cancel()

        watchers = [
            asyncio.create_task(self._connection.watch(receive, lambda: leave("disconnects"))),
            asyncio.create_task(self._connection.watch_stall(self._core.http.stall_s, lambda: leave("stalls"))),
        ]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()

    async def _run(self, asks: Sequence[Ask], shape: Shape) -> None:
        core, caller = self._core, self._caller
        charge = await caller.open(
            request_id=self._request_id,
            model=asks[0].model,
            served_as=core.names.served,
            prompt_tokens=sum(len(ask.prompt) for ask in asks),
            output_tokens=sum(ask.sampling.max_tokens * ask.sampling.n for ask in asks),
        )
        running: Batch | None = None
        headers = [*(EVENT_STREAM if self._streams else _JSON), *self._headers]
        alive = asyncio.create_task(
            self._connection.keep_alive(
                b": keep-alive\n\n" if self._streams else b"\n", headers, every_s=core.http.keep_alive_s
            )
        )
        try:
            running = await start_batch(
                core.engine,
                [replace(ask, priority=caller.capped(ask.priority)) for ask in asks],
                request_id=self._request_id,
                tenant=caller.tenant,
                traceparent=self._traceparent,
            )
            await running.admitted()
            self.status = 200
            if self._streams:
                await self._stream(running, shape, headers)
            else:
                await self._whole(running, shape, headers)
            self._outcome = "finished"
        except asyncio.CancelledError:
            self._outcome = "cancelled"
            raise
        finally:
            alive.cancel()
            if running is not None:
                running.close()
                self._usage = running.usage
            self._settle(charge)

    async def _stream(self, running: Batch, shape: Shape, headers: Headers) -> None:
        connection = self._connection
        await connection.start(200, headers)
        if first := shape.start():
            await connection.write(b"".join(first))
        async for piece in running.pieces():
            if frames := shape.take(piece):
                await connection.write(b"".join(frames))
        await connection.write(b"".join(shape.end(running.usage)), last=True)

    async def _whole(self, running: Batch, shape: Shape, headers: Headers) -> None:
        async for piece in running.pieces():
            shape.take(piece)
        body = json.dumps(shape.whole(running.usage), ensure_ascii=False).encode("utf-8", "replace")
        if not self._connection.started:
            headers = [*headers, (b"content-length", str(len(body)).encode())]
        await self._connection.start(200, headers)
        await self._connection.write(body, last=True)

    async def _fail(self, error: BaleenError, shape: Shape | None) -> None:
        self.status = status_of(error)
        if not self._connection.started:
            headers, body = refusal(self.status, error, dialect_of(self._scope["path"]), request_id=self._request_id)
            await self._connection.start(self.status, [*headers, *self._headers])
        elif shape is not None and self._streams:
            body = b"".join(shape.fail(self.status, error))
        else:
            _, body = refusal(self.status, error, dialect_of(self._scope["path"]), request_id=self._request_id)
        await self._connection.write(body, last=True)

    def _settle(self, charge: Charge) -> None:
        used = self._usage
        if self._outcome == "failed" and not used.completion:
            # a request that gave nothing costs nothing
            charge.settle(Usage(), self._outcome)
            return
        cached = min(used.cached, used.prompt)
        charge.settle(
            Usage(
                hit_tokens=cached,
                miss_tokens=used.prompt - cached,
                completion_tokens=used.completion,
                reasoning_tokens=used.reasoning,
            ),
            self._outcome,
        )

    @property
    def _caller(self) -> Caller:
        caller: Caller = self._scope[CALLER]
        return caller

    @property
    def _headers(self) -> Headers:
        taken_ms = round((self._core.clock.now() - self._began) * 1000)
        return [
            (b"x-request-id", self._request_id.encode()),
            (b"openai-processing-ms", str(taken_ms).encode()),
            (b"x-content-type-options", b"nosniff"),
        ]

    @property
    def _traceparent(self) -> str:
        for name, value in self._scope["headers"]:
            if name == b"traceparent":
                text: str = value.decode("latin-1")
                return text if trace_id_of(text) else ""
        return ""
