"""Server-sent events, as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Any

DONE = b"data: [DONE]\n\n"


def data_frame(value: Mapping[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: %s\n\n" % dumps(value)


def named_frame(value: Mapping[str, Any]) -> bytes:
    """An event that has the name of its type."""
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), dumps(value))


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Any) -> bytes:
    """Compact JSON. Half surrogates, which are no text, become question marks."""
    return _ENCODE(value).encode(errors="replace")


class TextFrame:
    """An event without a name of which only one text changes from one to the next: the rest is made once."""

    def __init__(self, value: Callable[[str], Mapping[str, Any]]) -> None:
        """value: the event with a text in it, once."""
        # nothing else of an event can hold it: it is no character
        self._before, _, self._after = data_frame(value("\0")).partition(b"\\u0000")

    def __call__(self, text: str) -> bytes:
        """The event with this text."""
        return b"%b%b%b" % (self._before, encode_basestring(text)[1:-1].encode(errors="replace"), self._after)
