"""The one line that a router logs for each call that ends: ids, tokens, times, ranks, outcome, and no word of it."""

from __future__ import annotations

from baleen.errors import BaleenError, InvalidRequest
from baleen.ids import RequestId
from baleen.telemetry import Log
from baleen.trace_context import trace_id_of
from baleen.wire.errors import wire_error
from router.record import RequestRecord


def log_refusal(log: Log, request_id: str, traceparent: str, error: BaleenError) -> None:
    """A call was refused before it became a request."""
    log.info(
        "request ended",
        request=request_id or None,
        trace=trace_id_of(traceparent),
        outcome="rejected",
        code=wire_error(type(error)).code.name,
        **_error_fields(error),
    )


def log_end(log: Log, record: RequestRecord, error: BaleenError | None) -> None:
    """A request is over."""
    usage = record.usage
    log.info(
        "request ended",
        request=RequestId(record.request_id),
        trace=trace_id_of(record.traceparent),
        outcome=record.kind,
        code=record.code,
        **_error_fields(error),
        seconds=record.seconds,
        first_token_s=record.first_token_s,
        **{f"{phase}_s": seconds for phase, seconds in record.phases.items()},
        prefill=record.prefill_rank or None,
        decode=record.decode_rank or None,
        attempts=record.num_attempts,
        migrations=len(record.moves),
        prompt_tokens=usage.prompt,
        cached_decode=usage.cached.decode,
        cached_prefill=usage.cached.prefill,
        cached_fetched=usage.cached.fetched,
        completion_tokens=usage.completion,
    )


def _error_fields(error: BaleenError | None) -> dict[str, str]:
    """Which error, and what it says unless that repeats what the client sent."""
    if error is None:
        return {}
    name = type(error).__name__
    return {"error": name} if isinstance(error, InvalidRequest) else {"error": name, "detail": str(error)}
