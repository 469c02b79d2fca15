"""Server-sent events, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DONE = b"data: [DONE]\n\n"


def data_frame(value: Mapping[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: %s\n\n" % dumps(value)


def named_frame(value: Mapping[str, Any]) -> bytes:
    """An event that has the name of its type."""
    return b"event: %s\ndata: %s\n\n" % (str(value["type"]).encode(), dumps(value))


def dumps(value: Any) -> bytes:
    """Compact JSON. Half surrogates, which are no text, become question marks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
