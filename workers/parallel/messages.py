"""What ranks say to each other beside the collectives: one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

MAX_LINE_BYTES = 64 * 1024


class MalformedMessage(Exception):
    """Bytes that no rank of this epoch would send."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First words on a connection, both ways: who speaks, in which epoch, to whom, and what the connection is for.

    lane: `control` carries the messages of this file, `step` the words of `lockstep.py`.
    """

    epoch: str
    rank: int
    incarnation: str
    to_incarnation: str
    lane: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Alive, and what the main thread does. collectives: how many it has entered."""

    step: int
    phase: str
    seconds_in_phase: float
    collectives: int


@dataclass(frozen=True, slots=True)
class Reached:
    """The main thread has come to a point where all ranks meet."""

    milestone: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The epoch is over. The cause is the first one that anybody saw, passed on unchanged."""

    cause: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """Nothing more will come, and that is no fault."""


Message = Hello | Heartbeat | Reached | Ended | Leaving

_FIELDS: dict[str, tuple[type[Any], dict[str, type]]] = {
    "hello": (Hello, {"epoch": str, "rank": int, "incarnation": str, "to_incarnation": str, "lane": str}),
    "heartbeat": (Heartbeat, {"step": int, "phase": str, "seconds_in_phase": float, "collectives": int}),
    "reached": (Reached, {"milestone": str}),
    "ended": (Ended, {"cause": str}),
    "leaving": (Leaving, {}),
}


def encode(message: Message) -> bytes:
    """One line, with its newline."""
    return json.dumps({"kind": type(message).__name__.lower(), **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of one line. Raises MalformedMessage."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise MalformedMessage(f"not JSON: {line[:80]!r}") from error
    kind = fields.pop("kind", None) if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise MalformedMessage(f"unknown kind: {line[:80]!r}")
    cls, types = _FIELDS[kind]
    if fields.keys() != types.keys() or any(type(fields[name]) is not wanted for name, wanted in types.items()):
        raise MalformedMessage(f"wrong fields of a {kind}: {line[:80]!r}")
    message: Message = cls(**fields)
    return message


class MessageReader:
    """Cuts a stream of bytes into messages, wherever the reads happen to split it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Messages that `data` completes. Raises MalformedMessage, also on a line that grows without end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise MalformedMessage(f"a line of more than {MAX_LINE_BYTES} bytes: {self._rest[:80]!r}")
        return [decode(line) for line in lines]
