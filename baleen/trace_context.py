"""W3C trace context: the `traceparent` that names a request's trace and the span that it goes on from."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def trace_id_of(traceparent: str) -> str | None:
    """Its trace id, 32 hexadecimal digits; None if it is none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match is not None and match[1].strip("0") and match[2].strip("0") else None
