"""The answer's side of one HTTP connection: bytes go out in order, and somebody notices when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from baleen.clock import Clock
from router.gateway.auth import Receive, Send

Headers = list[tuple[bytes, bytes]]

EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # reverse proxies pass each event on at once
    (b"x-accel-buffering", b"no"),
]


class Connection:
    """One answer. `write` waits while the server has as much for the client as it keeps."""

    def __init__(self, send: Send, clock: Clock) -> None:
        self._send = send
        self._clock = clock
        self._lock = asyncio.Lock()
        self.started = False
        self.ended = False
        self.wrote_at = clock.now()
        self.writing_since: float | None = None

    async def start(self, status: int, headers: Headers) -> None:
        """The status line, once."""
        async with self._lock:
            if not self.started:
                self.started = True
                await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Some of the body."""
        async with self._lock:
            if self.ended:
                return
            self.ended = last
            self.writing_since = self._clock.now()
            try:
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
            finally:
                self.writing_since = None
            self.wrote_at = self._clock.now()

    async def events(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        """Some server-sent events of the body."""
        await self.write(b"".join(frames), last=last)

    async def keep_alive(self, sign: bytes, head: Callable[[], Headers], *, every_s: float) -> None:
        """Until cancelled: after so much silence, start if need be, with these headers, and send the sign."""
        while True:
            await asyncio.sleep(max(0.01, self.wrote_at + every_s - self._clock.now()))
            if not self.ended and self.writing_since is None and self._clock.now() - self.wrote_at >= every_s:
                await self.start(200, head())
                await self.write(sign)

    async def watch(self, receive: Receive, on_gone: Callable[[], None]) -> None:
        """Until cancelled: tell when the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.ended:
            on_gone()

    async def watch_stall(self, stall_s: float, on_stall: Callable[[], None]) -> None:
        """Until cancelled: tell when the client takes nothing for so long."""
        while True:
            since = self.writing_since
            await asyncio.sleep(stall_s)
            if since is not None and self.writing_since == since:
                on_stall()
                return
