"""The HTTP server around the application: uvicorn, with a bound on request lines and headers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from baleen import ports
from baleen.errors import ConfigError
from router.gateway.auth import Application

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together, as they come; a proxy adds a few hundred bytes."""

MAX_HEADERS = 128
IDLE_S = 75
"""How long a connection without a request is kept."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_BODY = (
    b'{"error":{"message":"The request line and headers are too large","type":"invalid_request_error","param":null,'
    b'"code":"headers_too_large"}}'
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What comes before a body is counted as it comes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """More of a request. A head that is too large ends the connection."""
        if self._in_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse()
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._in_head = False
        self._head_bytes = 0
        if (
            len(self.headers) > MAX_HEADERS
            or sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES
        ):
            self._refuse()
            raise ValueError("too many headers")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is there."""
        self._in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP ends the connection."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE % (len(_BODY), _BODY))
            self.transport.close()


class HttpServer:
    """Serves an application, from `start` to `stop`, in the running event loop."""

    def __init__(self, app: Application, listen: str, *, drain_timeout_s: float, takes_over: bool = False) -> None:
        """listen: host:port, port 0 takes a free one. takes_over: another process listens there until it leaves."""
        self._listen = listen
        self._takes_over = takes_over
        # it would write to the log in a form of its own
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the address. Raises ConfigError if it cannot be had."""
        try:
            listener = ports.listener(self._listen, takes_over=self._takes_over)
        except OSError as error:
            raise ConfigError(f"listen is {self._listen}, which cannot be listened on: {error.strerror}") from error
        self._serving = asyncio.create_task(self._server._serve([listener]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise ConfigError("the HTTP server did not start")
            await asyncio.sleep(0.005)
        return f"{self._listen.rpartition(':')[0]}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        """Take no new connections, let running requests end for the time they have, and leave."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
