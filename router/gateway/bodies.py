"""Bodies of requests: bounded while they come, then strict JSON of bounded depth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from baleen.errors import BaleenError, DeadlineExceeded, InvalidRequest
from router.gateway.refusal import TooLarge, WrongMedia

MAX_DEPTH = 64
"""Objects and arrays within each other."""

BODY_TIMEOUT_S = 60.0
LARGE_BYTES = 1 << 20
"""From which size on a body is parsed beside the event loop."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Gone(BaleenError):
    """The client left before its request was complete."""


async def read_object(scope: MutableMapping[str, Any], receive: Receive, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a body.

    Raises TooLarge, WrongMedia, DeadlineExceeded, Gone, or InvalidRequest on what is no JSON object or too deep.
    """
    _check_media(scope["headers"])
    _check_length(scope["headers"], max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(receive, max_bytes)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the body did not come within {BODY_TIMEOUT_S:g} s") from error
    return parse(raw) if len(raw) < LARGE_BYTES else await asyncio.to_thread(parse, raw)


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        what = "is too deep" if isinstance(error, RecursionError) else f"is no JSON: {error}"
        raise InvalidRequest(f"the body {what}", field="body") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {type(value).__name__}, must be an object", field="body")
    _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for one in level
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise InvalidRequest(f"the body has more than {MAX_DEPTH} objects and arrays within each other", field="body")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _check_media(headers: list[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        if name == b"content-type" and value.split(b";")[0].strip().lower() != b"application/json":
            raise WrongMedia(f"content-type is {value[:80].decode('latin-1')!r}, must be application/json")


def _check_length(headers: list[tuple[bytes, bytes]], max_bytes: int) -> None:
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and (len(value) > 15 or int(value) > max_bytes):
            raise _too_large(max_bytes)


async def _read(receive: Receive, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client left")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the body has more than {max_bytes} bytes, which is the limit")
