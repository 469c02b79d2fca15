"""Spans of requests: made with OpenTelemetry, handed to one exporter, of whose failures no request learns.

Spans wait in a bounded queue for a thread of the exporter's own; what finds it full is dropped.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baleen.clock import Clock
from baleen.config import TraceConfig
from baleen.telemetry import Log

MOST_WAITING = 2048
SEND_INTERVAL_MS = 500
EXPORT_TIMEOUT_S = 2.0

Attribute = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Attribute | None]


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened within a span, at a time of the process's clock."""

    name: str
    at: float
    attributes: Attributes | None = None


class Tracing:
    """Spans of one process. Every time is of its own clock."""

    def __init__(
        self, config: TraceConfig, service: str, *, clock: Clock, log: Log, exporter: SpanExporter | None = None
    ) -> None:
        """service: name of the process. exporter: in place of the configured one."""
        # its own words would stand between the lines of the log; `_Watched` says what matters
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._clock = clock
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.ratio)),
            resource=Resource({"service.name": service}),
            shutdown_on_exit=False,
        )
        self._processor = BatchSpanProcessor(
            _Watched(exporter or _exporter(config), log),
            max_queue_size=MOST_WAITING,
            schedule_delay_millis=SEND_INTERVAL_MS,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("baleen")

    def begin(self, name: str, traceparent: str, start: float) -> Span:
        """A span that goes on from `traceparent`; without one it is the first of a trace, if chance takes it."""
        return self._tracer.start_span(name, context=_context(traceparent), start_time=self._ns(start))

    def end(
        self,
        span: Span,
        end: float,
        attributes: Attributes,
        moments: Sequence[Moment] = (),
        *,
        error: str = "",
    ) -> None:
        """Say what there is to say of a span, and end it. error: what went wrong, by its name."""
        if span.is_recording():
            span.set_attributes(_known(attributes))
            for moment in moments:
                span.add_event(moment.name, _known(moment.attributes or {}), timestamp=self._ns(moment.at))
            if error:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR, error))
        span.end(self._ns(end))

    def record(
        self,
        name: str,
        traceparent: str,
        times: tuple[float, float],
        attributes: Attributes,
        moments: Sequence[Moment] = (),
        *,
        error: str = "",
    ) -> str:
        """A span that is over already; returns the traceparent of what goes on from it."""
        span = self.begin(name, traceparent, times[0])
        self.end(span, times[1], attributes, moments, error=error)
        return traceparent_of(span)

    def close(self, timeout_s: float = 1.0) -> None:
        """Hand over what waits, unless that takes longer than `timeout_s`."""
        thread = Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        thread.start()
        thread.join(timeout_s)

    def _ns(self, moment: float) -> int:
        """A time of the clock in nanoseconds since 1970, by what the machine's clock says now."""
        return time.time_ns() - round((self._clock.now() - moment) * 1e9)


def traceparent_of(span: Span) -> str:
    """What those who go on from a span are told."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


class FileExporter(SpanExporter):
    """Appends one JSON object for each span; several processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """One write for all of them."""
        lines = "".join(json.dumps(_as_json(span), separators=(",", ":")) + "\n" for span in spans)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
        return SpanExportResult.SUCCESS


class _Watched(SpanExporter):
    """An exporter whose failures are warnings in our log."""

    def __init__(self, exporter: SpanExporter, log: Log) -> None:
        self._exporter = exporter
        self._log = log

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result, cause = self._exporter.export(spans), "the exporter did not take them"
        except Exception as error:
            result, cause = SpanExportResult.FAILURE, f"{type(error).__name__}: {error}"
        if result is not SpanExportResult.SUCCESS:
            self._log.warning("traces are lost", spans=len(spans), cause=cause)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter(config: TraceConfig) -> SpanExporter:
    if config.exporter == "file":
        return FileExporter(Path(config.file))
    # takes a while to import
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(
        endpoint=config.endpoint, insecure=config.endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT_S
    )


def _context(traceparent: str) -> Context:
    # an empty context of its own: nothing ambient is a parent
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())


def _known(attributes: Attributes) -> dict[str, Attribute]:
    return {name: value for name, value in attributes.items() if value is not None}


def _as_json(span: ReadableSpan) -> dict[str, object]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "service": span.resource.attributes.get("service.name"),
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name.lower(),
        "attributes": dict(span.attributes or {}),
        "events": [
            {"name": event.name, "at_ns": event.timestamp, "attributes": dict(event.attributes or {})}
            for event in span.events
        ],
    }
