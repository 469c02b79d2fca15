"""A raw client of event streams over HTTP, which can be cut after any byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class EventStream:
    """One connection. body: what came of it, its chunks put together. ended: whether it came to its proper end."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False

    async def read(self, size: int | None = None) -> bytes:
        """Until the body has so many bytes, gives no more than these; or to the end, and closes the connection."""
        if "content-length" in self.headers or self.status == 204:
            self.body += await self.reader.readexactly(int(self.headers.get("content-length", "0")) - len(self.body))
            self.ended = True
        while not self.ended and (size is None or len(self.body) < size):
            line = await self.reader.readline()
            if not line:
                break
            chunk = await self.reader.readexactly(int(line, 16) + 2)
            self.body += chunk[:-2]
            self.ended = len(chunk) == 2
        if size is None:
            self.cut()
            return self.body
        return self.body[:size]

    async def read_until(self, text: bytes) -> bytes:
        """Until the body holds this."""
        while text not in self.body and not self.ended:
            before = len(self.body)
            await self.read(before + 1)
            assert len(self.body) > before or self.ended, self.body
        return self.body

    def cut(self) -> None:
        """The network is gone."""
        self.writer.transport.abort()


async def open_stream(
    url: str,
    path: str,
    body: Any = None,
    *,
    key: str = "",
    last_event_id: str = "",
    method: str = "POST",
    headers: Sequence[str] = (),
) -> EventStream:
    """A connection that has sent a request and has the head of the answer."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    raw = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", *headers]
    lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"] if raw or method == "POST" else []
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
    writer.write("\r\n".join([*lines, "", ""]).encode() + raw)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return EventStream(reader, writer, int(head[0].split()[1]), found)


def whole_events(body: bytes) -> list[bytes]:
    """The events that a client has: what came of one that was cut is not of it."""
    return re.findall(rb"(?:[^\n]+\n)+\n", body)


def id_of(event: bytes) -> str:
    """What an event would be asked for by."""
    match = re.search(rb"^id: (.*)$", event, re.MULTILINE)
    assert match is not None, event
    return match[1].decode()
