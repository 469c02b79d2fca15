"""Errors in the form of the client's own dialect: statuses, bodies and headers."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Any, Literal

from baleen.errors import (
    AlreadyRunning,
    BaleenError,
    CapacityError,
    ContextExceeded,
    DeadlineExceeded,
    DrainingError,
    EpochEnded,
    InvalidRequest,
    NotReady,
    QueueFull,
    UnknownName,
)
from router.gateway.accounts.records import Allowance, Reason, Refused
from router.gateway.error_pages import PREFIX

Dialect = Literal["openai", "anthropic"]
Headers = list[tuple[bytes, bytes]]

_OPENAI: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "invalid_api_key"),
    # as DeepSeek says it
    402: ("unknown_error", "invalid_request_error"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    409: ("invalid_request_error", "conflict"),
    415: ("invalid_request_error", "unsupported_media_type"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", "form_not_kept"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "internal_error"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "timeout"),
}
_ANTHROPIC: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
}


class TooLarge(BaleenError):
    """A body that is larger than the gateway takes."""


class Unkeepable(BaleenError):
    """An answer that cannot go on within the form that was asked for."""


class WrongMedia(BaleenError):
    """A body that says that it is no JSON."""


class WrongMethod(BaleenError):
    """A path that knows other methods, of which `allowed` are some."""

    def __init__(self, message: str, *, allowed: str = "") -> None:
        super().__init__(message)
        self.allowed = allowed


class UnknownPath(UnknownName):
    """A path that leads nowhere."""


_STATUS: dict[type[BaleenError], int] = {
    TooLarge: 413,
    WrongMedia: 415,
    WrongMethod: 405,
    Unkeepable: 422,
    InvalidRequest: 400,
    UnknownName: 404,
    AlreadyRunning: 409,
    QueueFull: 429,
    CapacityError: 400,
    NotReady: 503,
    DrainingError: 503,
    EpochEnded: 503,
    DeadlineExceeded: 504,
}


_PAGES: dict[type[BaleenError], str] = {
    ContextExceeded: "too-long",
    CapacityError: "too-long",
    QueueFull: "rate-limit",
    UnknownPath: "unknown-path",
    TooLarge: "wrong-field",
    WrongMedia: "wrong-field",
    NotReady: "not-ready",
    DrainingError: "not-ready",
    EpochEnded: "not-ready",
}
_PAGE_OF_REASON: dict[Reason, str] = {
    "key": "api-key",
    "expired": "api-key",
    "balance": "balance",
    "requests": "rate-limit",
    "tokens": "rate-limit",
    "concurrency": "rate-limit",
}
_TOOL_RESULTS = re.compile(r"messages\[[0-9]+\]\.(tool_calls|tool_call_id|reasoning_content)")


def dialect_of(path: str) -> Dialect:
    """Whose clients call this path."""
    return "anthropic" if path.startswith("/anthropic/") or "/messages" in path else "openai"


def status_of(error: BaleenError) -> int:
    """The HTTP status of an error; 500 of one that is ours."""
    if isinstance(error, Refused):
        return error.status
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def error_object(error: BaleenError, status: int, dialect: Dialect) -> dict[str, Any]:
    """What went wrong, as it stands under `error`."""
    if dialect == "anthropic":
        return {"type": _ANTHROPIC[status], "message": str(error)}
    kind, code = _OPENAI[status]
    if isinstance(error, (CapacityError, ContextExceeded)) and status == 400:
        code = "context_length_exceeded"
    field = error.field if isinstance(error, InvalidRequest) else None
    shown: dict[str, Any] = {"message": str(error), "type": kind, "param": field, "code": code}
    page = page_of(error)
    return shown if page is None else shown | {"doc": PREFIX + page}


def page_of(error: BaleenError) -> str | None:
    """The name of the page that explains an error, if one does."""
    if isinstance(error, Refused):
        return _PAGE_OF_REASON.get(error.reason)
    if isinstance(error, InvalidRequest) and not isinstance(error, ContextExceeded):
        if error.field in ("model", "max_tokens"):
            return {"model": "model-name", "max_tokens": "max-tokens"}[error.field]
        return "tool-results" if _TOOL_RESULTS.fullmatch(error.field) else "wrong-field"
    return next((_PAGES[kind] for kind in type(error).__mro__ if kind in _PAGES), None)


def refusal(
    status: int, error: BaleenError, dialect: Dialect, *, request_id: str | None = None
) -> tuple[Headers, bytes]:
    """Headers and body. request_id: if the request has one by now."""
    shown: dict[str, Any] = {"error": error_object(error, status, dialect)}
    if dialect == "anthropic":
        shown = {"type": "error", **shown, "request_id": request_id}
    body = json.dumps(shown).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if (page := page_of(error)) is not None:
        headers.append((b"link", f'<{PREFIX}{page}>; rel="help"'.encode()))
    if isinstance(error, WrongMethod) and error.allowed:
        headers.append((b"allow", error.allowed.encode()))
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
