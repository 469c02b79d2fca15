"""Refusals before any endpoint is reached: their bodies and headers in the form of the client's own dialect."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Literal

from baleen.errors import BaleenError
from router.gateway.accounts.records import Allowance

Dialect = Literal["openai", "anthropic"]
Headers = list[tuple[bytes, bytes]]

_OPENAI: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "invalid_api_key"),
    # as DeepSeek says it
    402: ("unknown_error", "invalid_request_error"),
    403: ("permission_error", "permission_denied"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "service_unavailable"),
}
_ANTHROPIC: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "api_error",
}


def dialect_of(path: str) -> Dialect:
    """Whose clients call this path."""
    return "anthropic" if path.startswith("/anthropic/") or "/messages" in path else "openai"


def refusal(status: int, error: BaleenError, dialect: Dialect) -> tuple[Headers, bytes]:
    """Headers and body."""
    message = str(error)
    if dialect == "anthropic":
        body = json.dumps({"type": "error", "error": {"type": _ANTHROPIC[status], "message": message}}).encode()
    else:
        kind, code = _OPENAI[status]
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        headers.append((b"retry-after-ms", str(max(1, math.ceil(error.retry_after_s * 1000))).encode()))
    return headers, body


def limit_headers(requests: Allowance | None, tokens: Allowance | None, dialect: Dialect, *, wall_s: float) -> Headers:
    """What is left of the limits, where there are some."""
    headers: Headers = []
    for kind, left in ((b"requests", requests), (b"tokens", tokens)):
        if left is None:
            continue
        if dialect == "anthropic":
            reset = datetime.fromtimestamp(wall_s + left.reset_s, UTC).isoformat(timespec="seconds")
            start, names = b"anthropic-ratelimit-" + kind + b"-", (b"limit", b"remaining", b"reset")
            values = (str(left.limit), str(left.remaining), reset.replace("+00:00", "Z"))
            headers += [(start + name, value.encode()) for name, value in zip(names, values, strict=True)]
        else:
            headers += [
                (b"x-ratelimit-limit-" + kind, str(left.limit).encode()),
                (b"x-ratelimit-remaining-" + kind, str(left.remaining).encode()),
                (b"x-ratelimit-reset-" + kind, f"{left.reset_s:.3f}s".encode()),
            ]
    return headers
