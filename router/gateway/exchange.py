"""One request of any dialect, from its body to its last byte: charged, sent to the router, answered, settled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from baleen.errors import InvalidRequest, QueueFull
from baleen.trace_context import trace_id_of
from router.gateway.accounts.accounts import Charge
from router.gateway.accounts.money import Usage
from router.gateway.accounts.records import Outcome
from router.gateway.ask import Ask, TokenUsage
from router.gateway.auth import Receive, Send
from router.gateway.batch import Batch, start_batch
from router.gateway.bodies import Gone, read_object
from router.gateway.call import Call, Scope, Sink
from router.gateway.connection import Connection, Headers
from router.gateway.core import Core
from router.gateway.dialect import Reader, Shape
from router.gateway.refusal import WrongMethod
from router.gateway.streams import Stream, TakenOver

_JSON: Headers = [(b"content-type", b"application/json")]


class Exchange:
    """The endpoint of a dialect: a POST is a request, and what shows the id of an event goes on with its stream."""

    def __init__(self, core: Core, reader: Reader, *, name: str) -> None:
        """name: of the endpoint, in counts and logs."""
        self._core = core
        self._reader = reader
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        connection = Connection(send, self._core.clock)
        task = asyncio.current_task()
        assert task is not None
        event_id = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"last-event-id"), "")
        call: _Request | _Return
        if event_id or scope["method"] != "POST":
            call = _Return(self._core, scope, connection, self._name, event_id)
        else:
            call = _Request(self._core, scope, connection, self._name, self._reader)
        try:
            await call.serve(receive, task)
        except asyncio.CancelledError:
            if not call.gone:
                raise
            task.uncancel()
        finally:
            call.end()


class _Return(Call):
    """A client that comes back to a stream."""

    def __init__(self, core: Core, scope: Scope, connection: Connection, endpoint: str, event_id: str) -> None:
        super().__init__(core, scope, connection, endpoint)
        self._event_id = event_id

    async def serve(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        """The rest of the stream. A body, if there is one, says nothing that is not known."""
        try:
            if not self._event_id:
                method, path = self.scope["method"], self.scope["path"][:200]
                raise WrongMethod(
                    f"{method} is not a method of {path} without the header Last-Event-ID", allowed="POST"
                )
            stream, number = self.core.streams.find(self._event_id, self.owner, self.endpoint)
            self.status = 200
            if stream.ended and number == stream.last:
                # clients of event streams take it for: do not come back again
                self.status = 204
                await self.connection.start(204, self.headers())
                await self.connection.write(b"", last=True)
                return
            async with self.watched(receive, task):
                await stream.deliver(
                    self.connection,
                    after=number,
                    head=self.stream_headers,
                    keep_alive_s=self.core.http.keep_alive_s,
                )
        except TakenOver:
            self.gone = True
        except Exception as error:
            await self.fail(error, None, self.connection)

    def end(self) -> None:
        """Count it."""
        self.count("resume", left=self.gone)


class _Request(Call):
    """One request. Where its client may come back, the answer is made by a task that outlives the connection."""

    def __init__(self, core: Core, scope: Scope, connection: Connection, endpoint: str, reader: Reader) -> None:
        super().__init__(core, scope, connection, endpoint)
        self._reader = reader
        self._usage = TokenUsage(0, 0, 0, 0)
        self._outcome: Outcome = "failed"
        self._streams = False
        self._is_apart = False
        core.meters.active += 1

    async def serve(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        """All of it; what goes wrong becomes an answer."""
        core = self.core
        try:
            if core.meters.active > core.http.max_active:
                raise QueueFull(f"{core.http.max_active} requests are running, which is the limit of this gateway")
            body = await read_object(self.scope, receive, max_bytes=core.http.max_body_bytes)
            async with self.watched(receive, task):
                await core.prepare()
                asked, shape, self._streams = await self._reader(body, core)
                is_resumable = bool(body.get("resumable"))
                del body
                self.request_id = shape.request_id
                asks = asked if isinstance(asked, tuple) else (asked,)
                if is_resumable and not self._streams:
                    raise InvalidRequest("resumable is for streams: it needs stream = true", field="resumable")
                if is_resumable:
                    await self._answer_apart(asks, shape)
                else:
                    await self._answer_here(asks, shape)
        except (Gone, TakenOver):
            self.gone = True
        except Exception as error:
            await self.fail(error, None, self.connection)

    def end(self) -> None:
        """Count and note it, unless its answer is made apart."""
        if not self._is_apart:
            self._close(left=self.gone)

    async def _answer_here(self, asks: Sequence[Ask], shape: Shape) -> None:
        sign, head = (b": keep-alive\n\n", self.stream_headers) if self._streams else (b"\n", self._whole_headers)
        alive = asyncio.create_task(self.connection.keep_alive(sign, head, every_s=self.core.http.keep_alive_s))
        try:
            await self._answer(asks, shape, self.connection)
        finally:
            alive.cancel()

    async def _answer_apart(self, asks: Sequence[Ask], shape: Shape) -> None:
        streams = self.core.streams
        stream = streams.open(self.owner, self.endpoint)
        self._is_apart = True

        async def work() -> None:
            is_lost = False
            try:
                await self._answer(asks, shape, stream)
            except asyncio.CancelledError:
                is_lost = True
                raise
            finally:
                self._close(left=is_lost)

        streams.begin(stream, asyncio.create_task(work()))
        await stream.deliver(
            self.connection, after=0, head=self.stream_headers, keep_alive_s=self.core.http.keep_alive_s
        )

    async def _answer(self, asks: Sequence[Ask], shape: Shape, sink: Sink | Stream) -> None:
        try:
            await self._run(asks, shape, sink)
        except Exception as error:
            await self.fail(error, shape if self._streams else None, sink)

    async def _run(self, asks: Sequence[Ask], shape: Shape, sink: Sink) -> None:
        core, caller = self.core, self.caller
        charge = await caller.open(
            request_id=self.request_id,
            model=asks[0].model,
            served_as=core.names.served,
            prompt_tokens=sum(len(ask.prompt) for ask in asks),
            output_tokens=sum(ask.sampling.max_tokens * ask.sampling.n for ask in asks),
        )
        running: Batch | None = None
        try:
            running = start_batch(
                core.engine,
                [replace(ask, priority=caller.capped(ask.priority)) for ask in asks],
                request_id=self.request_id,
                tenant=caller.tenant,
                traceparent=self._traceparent,
            )
            await running.admitted()
            self.status = 200
            if self._streams:
                await self._stream(running, shape, sink)
            else:
                await self._whole(running, shape, sink)
            self._outcome = "finished"
        except asyncio.CancelledError:
            self._outcome = "cancelled"
            raise
        finally:
            if running is not None:
                running.close()
                self._usage = running.usage
            self._settle(charge)

    async def _stream(self, running: Batch, shape: Shape, sink: Sink) -> None:
        await sink.start(200, self.stream_headers())
        if first := shape.start():
            await sink.events(first)
        async for pieces in running.pieces():
            if frames := [frame for piece in pieces for frame in shape.take(piece)]:
                await sink.events(frames)
        await sink.events(shape.end(running.usage), last=True)

    async def _whole(self, running: Batch, shape: Shape, sink: Sink) -> None:
        async for pieces in running.pieces():
            for piece in pieces:
                shape.take(piece)
        body = json.dumps(shape.whole(running.usage), ensure_ascii=False).encode("utf-8", "replace")
        length = [] if sink.started else [(b"content-length", str(len(body)).encode())]
        await sink.start(200, [*self._whole_headers(), *length])
        await sink.write(body, last=True)

    def _whole_headers(self) -> Headers:
        return [*_JSON, *self.headers()]

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

    def _close(self, *, left: bool) -> None:
        """Count it, and write its line of the log. left: its client went before the end."""
        self.core.meters.active -= 1
        self.count(self.endpoint, left=left)
        self.core.log.info(
            "request",
            request_id=self.request_id,
            endpoint=self.endpoint,
            status=499 if left else self.status,
            outcome="cancelled" if left else self._outcome,
            prompt_tokens=self._usage.prompt,
            cached_tokens=self._usage.cached,
            completion_tokens=self._usage.completion,
            seconds=self.core.clock.now() - self.began,
        )

    @property
    def _traceparent(self) -> str:
        for name, value in self.scope["headers"]:
            if name == b"traceparent":
                text: str = value.decode("latin-1")
                return text if trace_id_of(text) else ""
        return ""
