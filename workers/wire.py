"""Between the messages of the worker service and the rank's own commands and events."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future

from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.reports import Load, PromptReport, RequestOutput
from baleen.v1 import worker_pb2
from baleen.wire.errors import refusal_to_failure
from baleen.wire.reports import load_to_proto, output_to_proto, prompt_report_to_proto
from baleen.wire.sampling import sampling_from_proto
from workers.engine.messages import (
    Abort,
    Destination,
    Ended,
    Fetch,
    FetchDone,
    HealthReport,
    Prefill,
    PrefillDone,
    Refused,
    Reservation,
    Submit,
)

MAX_REQUEST_ID = 256
"""Characters; ids stand in every message and log line."""


def submit_from_proto(message: worker_pb2.Submit, *, now: float, traceparent: str = "") -> Submit:
    """`traceparent` is for a message without one. Raises InvalidRequest that names field, value and limit."""
    return Submit(
        request_id=_request_id(message.request_id),
        token_ids=tuple(message.token_ids),
        sampling=sampling_from_proto(message.sampling),
        priority=message.priority,
        deadline=_deadline(message, now),
        cache_salt=message.cache_salt,
        num_delivered=message.num_delivered,
        ticket=message.ticket or None,
        traceparent=message.traceparent or traceparent,
        prompt_logprobs_from=message.prompt_logprobs_from,
    )


def prefill_from_proto(message: worker_pb2.Prefill, *, now: float, traceparent: str = "") -> Prefill:
    """`traceparent` is for a message without one. Raises InvalidRequest that names field, value and limit."""
    destination = None
    if message.HasField("destination"):
        destination = _destination(message.destination)
    return Prefill(
        request_id=_request_id(message.request_id),
        token_ids=tuple(message.token_ids),
        cache_salt=message.cache_salt,
        priority=message.priority,
        deadline=_deadline(message, now),
        destination=destination,
        ticket=message.ticket or None,
        traceparent=message.traceparent or traceparent,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        prompt_logprobs_from=message.prompt_logprobs_from,
    )


def fetch_from_proto(
    message: worker_pb2.FetchRequest, reply: Future[FetchDone], *, now: float, traceparent: str = ""
) -> Fetch:
    """`traceparent` is for a message without one. Raises InvalidRequest that names field, value and limit."""
    return Fetch(
        token_ids=tuple(message.token_ids),
        cache_salt=message.cache_salt,
        destination=_destination(message.destination),
        deadline=now + seconds(message.timeout_s, "timeout_s", above=0.0),
        reply=reply,
        traceparent=message.traceparent or traceparent,
    )


def abort_from_proto(message: worker_pb2.Abort, *, now: float) -> Abort:
    """One completion of a request, or all of them."""
    return Abort(RequestId(message.request_id), message.index if message.HasField("index") else None, now)


def seconds(value: float, field: str, *, above: float = -math.inf) -> float:
    """A time as it came, checked. Raises InvalidRequest unless it is finite and more than `above`."""
    if not math.isfinite(value) or value <= above:
        limit = "" if above == -math.inf else f" above {above:g}"
        raise InvalidRequest(f"{field} is {value}, must be a finite number of seconds{limit}", field=field)
    return value


def step_report(
    step: int, outputs: Iterable[RequestOutput], load: Load, prompts: Iterable[PromptReport] = ()
) -> worker_pb2.SessionResponse:
    """What is new of one session's requests."""
    report = worker_pb2.StepReport(
        step=step,
        outputs=map(output_to_proto, outputs),
        load=load_to_proto(load),
        prompts=map(prompt_report_to_proto, prompts),
    )
    return worker_pb2.SessionResponse(step_report=report)


def refused_to_proto(refused: Refused) -> worker_pb2.SessionResponse:
    """The answer to a request that was not taken."""
    failure = refusal_to_failure(refused.error, refused.field, refused.message)
    return worker_pb2.SessionResponse(refused=worker_pb2.Refused(request_id=refused.request_id or "", failure=failure))


def prefill_done_to_proto(done: PrefillDone) -> worker_pb2.SessionResponse:
    """The end of a prefill."""
    message = worker_pb2.PrefillDone(
        request_id=done.request_id,
        num_blocks=done.num_blocks,
        num_pushed=done.num_pushed,
        num_cached=done.num_cached,
        failure=done.failure or "",
    )
    return worker_pb2.SessionResponse(prefill_done=message)


def health_to_proto(health: HealthReport) -> worker_pb2.SessionResponse:
    """Progress of the step loop."""
    message = worker_pb2.HealthReport(
        rank=health.rank,
        step=health.step,
        phase=health.phase,
        seconds_in_phase=health.seconds_in_phase,
        ended=health.ended,
    )
    return worker_pb2.SessionResponse(health_report=message)


def ended_to_proto(ended: Ended) -> worker_pb2.SessionResponse:
    """The last message."""
    return worker_pb2.SessionResponse(ended=worker_pb2.Ended(cause=ended.cause))


def reservation_to_proto(reservation: Reservation) -> worker_pb2.ReserveResponse:
    """Blocks set aside for a transfer."""
    return worker_pb2.ReserveResponse(
        ticket=reservation.ticket,
        transfer_address=reservation.address,
        num_held_blocks=reservation.num_held_blocks,
        num_reserved_blocks=reservation.num_reserved_blocks,
        expires_in_s=reservation.expires_in_s,
    )


def fetch_done_to_proto(done: FetchDone) -> worker_pb2.FetchResponse:
    """The end of a fetch."""
    return worker_pb2.FetchResponse(num_blocks=done.num_blocks, num_pushed=done.num_pushed, failure=done.failure or "")


def _destination(message: worker_pb2.Destination) -> Destination:
    return Destination(message.address, message.ticket, message.first_block)


def _request_id(text: str) -> RequestId:
    if not 0 < len(text) <= MAX_REQUEST_ID:
        raise InvalidRequest(
            f"request_id has {len(text)} characters, must have 1 to {MAX_REQUEST_ID}", field="request_id"
        )
    return RequestId(text)


def _deadline(message: worker_pb2.Submit | worker_pb2.Prefill, now: float) -> float | None:
    return now + seconds(message.remaining_s, "remaining_s") if message.HasField("remaining_s") else None
