"""What happened to each request on this rank: one line in the log when it ends, and its spans. One thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from baleen.blocks import BLOCK_TOKENS
from baleen.clock import Clock
from baleen.ids import RequestId
from baleen.reports import RequestOutput
from baleen.telemetry import Log
from baleen.trace_context import trace_id_of
from workers.engine.messages import Event, Prefill, PrefillDone, Refused, StepReport, Submit
from workers.engine.request import Request

if TYPE_CHECKING:
    from workers.spans import RankSpans


@dataclass(slots=True, eq=False)
class Entry:
    """One request from its arrival on. Times are of the rank's clock. left: completions that have not ended."""

    command: Submit | Prefill
    arrived: float
    left: int
    started: float | None = None
    first_token: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finishes: list[str] = field(default_factory=list)
    detail: str = ""
    pushed_from: float | None = None
    preempted: list[float] = field(default_factory=list)


class Journal:
    """Follows requests by what the step loop is told, does and says. Neither tokens nor text go into the log."""

    def __init__(
        self, emit: Callable[[Event], None], *, clock: Clock, log: Log, spans: RankSpans | None = None
    ) -> None:
        """emit: where events go on to. spans: told of each request that has ended."""
        self._emit = emit
        self._clock = clock
        self._log = log
        self._spans = spans
        self._entries: dict[RequestId, Entry] = {}

    def begun(self, command: Submit | Prefill) -> None:
        """The step loop has taken a request."""
        num_completions = command.sampling.n if isinstance(command, Submit) else 1
        self._entries[command.request_id] = Entry(command, self._clock.now(), num_completions)

    def started(self, request: Request) -> None:
        """The scheduler gives a completion its blocks, perhaps not for the first time."""
        entry = self._entries.get(request.id)
        if entry is None:
            return
        if entry.started is None:
            entry.started = self._clock.now()

    def preempted(self, request: Request) -> None:
        """The scheduler took a completion's blocks for others."""
        entry = self._entries.get(request.id)
        if entry is not None:
            entry.preempted.append(self._clock.now())

    def emit(self, event: Event) -> None:
        """An event leaves the rank."""
        match event:
            case StepReport():
                for output in event.outputs:
                    self._take(output)
            case PrefillDone():
                self._end_prefill(event)
            case Refused():
                self._log.info("request ended", request=event.request_id, outcome="refused", error=event.error)
        self._emit(event)

    def _take(self, output: RequestOutput) -> None:
        entry = self._entries.get(output.request_id)
        if entry is None:
            return
        if output.tokens:
            entry.output_tokens += len(output.tokens)
            if entry.first_token is None:
                entry.first_token = self._clock.now()
        if output.finish is None:
            return
        entry.finishes.append(output.finish.value)
        entry.prompt_tokens, entry.cached_tokens = output.num_prompt_tokens, output.num_cached_tokens
        entry.left -= 1
        if not entry.left:
            self._end(entry, blocks_pushed=None)

    def _end_prefill(self, done: PrefillDone) -> None:
        entry = self._entries.get(done.request_id)
        if entry is None:
            return
        entry.prompt_tokens = done.num_blocks * BLOCK_TOKENS
        entry.cached_tokens = done.num_cached * BLOCK_TOKENS
        entry.finishes.append("prefilled" if done.failure is None else "failed")
        entry.detail = done.failure or ""
        entry.pushed_from = done.pushed_from
        self._end(entry, blocks_pushed=done.num_pushed)

    def _end(self, entry: Entry, *, blocks_pushed: int | None) -> None:
        command, now = entry.command, self._clock.now()
        del self._entries[command.request_id]

        def since(moment: float | None) -> float | None:
            return None if moment is None else moment - entry.arrived

        self._log.info(
            "request ended",
            request=command.request_id,
            trace=trace_id_of(command.traceparent),
            outcome=",".join(sorted(set(entry.finishes))),
            seconds=now - entry.arrived,
            queued_s=since(entry.started),
            first_token_s=since(entry.first_token),
            prompt_tokens=entry.prompt_tokens,
            cached_tokens=entry.cached_tokens,
            output_tokens=entry.output_tokens,
            blocks_pushed=blocks_pushed,
            preemptions=len(entry.preempted),
        )
        if self._spans is not None:
            self._spans.ended(entry, now)
