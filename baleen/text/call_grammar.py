"""How a chat format writes tool calls, as a parser of outputs needs to know it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from baleen.text.output_events import EventLog
from baleen.text.reader import Malformed, Reader, Reading

_MARKS = re.compile(r'"|\\.?', re.DOTALL)
"""What begins or ends a string of JSON, or does not though it looks like it."""


class CallGrammar(NamedTuple):
    """A block of calls.

    tags: what begins a block; line breaks before it belong to it, and the first tag is what the format asks for.
    read: takes the calls, from after that tag to the end of the block. It raises Malformed; what the reader keeps then
    is the text from the last complete call on.
    """

    tags: tuple[str, ...]
    read: Callable[[Reader, EventLog], Reading[None]]


def json_until(reader: Reader, tag: str, put: Callable[[str], None]) -> Reading[None]:
    """Give `put` the JSON text before the tag as it comes, and take the tag; inside a string of the text it is none.

    Raises Malformed if the text ends before the tag, or a line does inside a string that the tag stands in.
    """
    strings = _Strings()

    def both(piece: str) -> None:
        strings.put(piece)
        put(piece)

    ends: tuple[str, ...] = (tag,)
    while True:
        end = yield from reader.until(ends, both)
        if end is None:
            raise Malformed(f"the text ends before {tag}")
        if not strings.open and end == tag:
            return
        if strings.open and end != tag:
            raise Malformed("a line ends inside a string")
        both(end)
        ends = (tag, "\n")


class _Strings:
    """Whether JSON text that comes in pieces stands inside a string."""

    def __init__(self) -> None:
        self.open = False
        self._escapes = False

    def put(self, piece: str) -> None:
        """More of the text."""
        begin = 1 if self._escapes else 0
        self._escapes = self._escapes and not piece
        for mark in _MARKS.finditer(piece, begin):
            if mark[0] == '"':
                self.open = not self.open
            self._escapes = mark[0] == "\\"


def is_json(text: str) -> bool:
    """Whether a text is one JSON value. NaN and Infinity are not."""
    try:
        json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)
