"""How a chat format writes tool calls, as a parser of outputs needs to know it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from baleen.text.output_events import EventLog
from baleen.text.reader import Reader, Reading


class CallGrammar(NamedTuple):
    """A block of calls.

    tags: what begins a block; line breaks before it belong to it, and the first tag is what the format asks for.
    read: takes the calls, from after that tag to the end of the block. It raises Malformed; what the reader keeps then
    is the text from the last complete call on.
    """

    tags: tuple[str, ...]
    read: Callable[[Reader, EventLog], Reading[None]]


def is_json(text: str) -> bool:
    """Whether a text is one JSON value. NaN and Infinity are not."""
    try:
        json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> None:
    raise ValueError(constant)
