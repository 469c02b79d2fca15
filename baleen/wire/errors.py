"""Our errors as gRPC statuses and as messages inside a stream, and back: the one table of codes and reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from baleen.errors import (
    AlreadyRunning,
    BaleenError,
    CapacityError,
    CheckpointError,
    ConfigError,
    ContextExceeded,
    DeadlineExceeded,
    DrainingError,
    EpochEnded,
    HeadLost,
    InvalidRequest,
    NotReady,
    PoisonRequest,
    QueueFull,
    UnknownName,
)
from baleen.v1 import common_pb2

DOMAIN = "baleen"
"""Of google.rpc.ErrorInfo."""

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class WireError:
    """How an error class looks on the wire. `reason` is stable: clients may depend on it."""

    code: grpc.StatusCode
    reason: str


TABLE: dict[type[BaleenError], WireError] = {
    InvalidRequest: WireError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ContextExceeded: WireError(grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_EXCEEDED"),
    CapacityError: WireError(grpc.StatusCode.OUT_OF_RANGE, "NEVER_FITS"),
    QueueFull: WireError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    AlreadyRunning: WireError(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_RUNNING"),
    UnknownName: WireError(grpc.StatusCode.NOT_FOUND, "UNKNOWN_NAME"),
    ConfigError: WireError(grpc.StatusCode.FAILED_PRECONDITION, "CONFIGURATION"),
    CheckpointError: WireError(grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT"),
    EpochEnded: WireError(grpc.StatusCode.UNAVAILABLE, "EPOCH_ENDED"),
    DrainingError: WireError(grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    NotReady: WireError(grpc.StatusCode.UNAVAILABLE, "NOT_READY"),
    DeadlineExceeded: WireError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    PoisonRequest: WireError(grpc.StatusCode.ABORTED, "POISON_REQUEST"),
    HeadLost: WireError(grpc.StatusCode.INTERNAL, "HEAD_LOST"),
    BaleenError: WireError(grpc.StatusCode.INTERNAL, "INTERNAL"),
}
"""A class that is missing here looks like its nearest base."""

_BY_NAME = {kind.__name__: kind for kind in TABLE}
_BY_REASON = {wire.reason: kind for kind, wire in TABLE.items()}
_BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: NotReady,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: UnknownName,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyRunning,
    grpc.StatusCode.RESOURCE_EXHAUSTED: QueueFull,
}
_BY_NUMBER = {code.value[0]: kind for code, kind in _BY_CODE.items()}


def wire_error(kind: type[BaleenError]) -> WireError:
    """Code and reason of an error class."""
    return next(TABLE[base] for base in kind.__mro__ if base in TABLE)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaleenError) -> NoReturn:
    """End a call with this error: its message, ErrorInfo, and where they apply BadRequest and RetryInfo."""
    code = wire_error(type(error)).code
    metadata: list[tuple[str, str | bytes]] = [(_DETAILS_KEY, _status(error).SerializeToString())]
    if error.retry_after_s is not None:
        metadata.append(("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))))
    await context.abort(code, str(error), tuple(metadata))
    raise AssertionError("abort returned")


def error_from_rpc(error: grpc.aio.AioRpcError) -> BaleenError:
    """What a failed call says, as the error that the other side raised. Without our details: the nearest of ours."""
    message = error.details() or f"the call ended with {error.code().name}"
    reason, field, retry_after_s = "", "", None
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason = info.reason if info.domain == DOMAIN else ""
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            field = error_details_pb2.BadRequest.FromString(detail.value).field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    kind = _BY_REASON.get(reason) or _BY_CODE.get(error.code(), BaleenError)
    return _build(kind, message, field, retry_after_s)


def error_to_failure(error: BaleenError) -> common_pb2.Failure:
    """The same facts for inside a stream."""
    field = error.field if isinstance(error, InvalidRequest) else None
    return _failure(type(error), field, str(error), error.retry_after_s)


def refusal_to_failure(name: str, field: str | None, message: str) -> common_pb2.Failure:
    """As `error_to_failure`, for an error of `baleen.errors` that is known by the name of its class only."""
    kind = _BY_NAME.get(name, BaleenError)
    return _failure(kind, field, message, kind.retry_after_s)


def error_from_failure(failure: common_pb2.Failure) -> BaleenError:
    """The error that the other side met. Of a reason that this version does not know: the nearest of its code."""
    delay = failure.retry_after.seconds + failure.retry_after.nanos / 1e9 if failure.HasField("retry_after") else None
    kind = _BY_REASON.get(failure.reason) or _BY_NUMBER.get(failure.code, BaleenError)
    return _build(kind, failure.message, failure.field, delay)


def _failure(kind: type[BaleenError], field: str | None, message: str, after_s: float | None) -> common_pb2.Failure:
    wire = wire_error(kind)
    return common_pb2.Failure(
        reason=wire.reason,
        message=message,
        field=field or "",
        retry_after=None if after_s is None else _duration(after_s),
        code=wire.code.value[0],
    )


def _status(error: BaleenError) -> status_pb2.Status:
    wire = wire_error(type(error))
    details = [_packed(error_details_pb2.ErrorInfo(reason=wire.reason, domain=DOMAIN))]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s))))
    return status_pb2.Status(code=wire.code.value[0], message=str(error), details=details)


def _details(error: grpc.aio.AioRpcError) -> Sequence[any_pb2.Any]:
    metadata: Iterable[tuple[str, str | bytes]] = cast(Any, error.trailing_metadata() or ())
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                details: Sequence[any_pb2.Any] = status_pb2.Status.FromString(value).details
                return details
            except DecodeError:
                break
    return ()


def _build(kind: type[BaleenError], message: str, field: str, retry_after_s: float | None) -> BaleenError:
    error = kind(message, field=field) if issubclass(kind, InvalidRequest) else _with_message(kind, message)
    if retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


def _with_message(kind: type[BaleenError], message: str) -> BaleenError:
    # its text is made from its cause
    return EpochEnded(message.removeprefix("epoch ended: ")) if kind is EpochEnded else kind(message)


def _duration(seconds: float) -> duration_pb2.Duration:
    whole, rest = divmod(seconds, 1.0)
    return duration_pb2.Duration(seconds=int(whole), nanos=int(rest * 1e9))


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
