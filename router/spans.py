"""The spans of one request in the router: its whole time, its admission, choices of ranks, fetches of prefixes."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import Span

from baleen.tracing import Moment, Tracing
from router.policy.snapshot import Decision
from router.record import RequestRecord


@dataclass(frozen=True, slots=True)
class _Choice:
    at: float
    seconds: float
    decision: Decision


@dataclass(slots=True, eq=False)
class RequestSpans:
    """Written while the request runs, turned into spans at its end; `span` is there from the beginning, as a parent."""

    tracing: Tracing
    span: Span
    traceparent: str
    choices: list[_Choice] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def chose(self, decision: Decision, seconds: float, now: float) -> None:
        """Ranks were chosen, which took that long."""
        self.choices.append(_Choice(now, seconds, decision))

    def moved(self, cause: str, rank: str, now: float) -> None:
        """A rank failed the request, which goes on elsewhere."""
        self.moments.append(Moment("migration", now, {"baleen.cause": cause, "baleen.rank": rank}))

    def end(self, record: RequestRecord, error: str) -> None:
        """The request is over."""
        tracing, end = self.tracing, record.arrived + record.seconds
        if self.span.is_recording():
            admitted = record.phases.get("queued")
            if admitted is not None:
                times = (record.arrived, record.arrived + admitted)
                attributes = {"baleen.admitted": record.num_attempts > 0}
                tracing.record(
                    "router.admit", self.traceparent, times, attributes, error="" if record.num_attempts else error
                )
            for choice in self.choices:
                decision = choice.decision
                tracing.record(
                    "router.route",
                    self.traceparent,
                    (choice.at - choice.seconds, choice.at),
                    {
                        "baleen.policy": decision.policy,
                        "baleen.decode": decision.decode,
                        "baleen.prefill": decision.prefill,
                        "baleen.predicted_first_token_s": decision.first_token_s,
                    },
                )
            for fetch in record.fetches:
                tracing.record(
                    "router.fetch",
                    self.traceparent,
                    (fetch.at - fetch.seconds, fetch.at),
                    {
                        "baleen.holder": fetch.holder,
                        "baleen.destination": fetch.destination,
                        "baleen.blocks_wanted": fetch.num_wanted,
                        "baleen.blocks_taken": fetch.num_taken,
                        "baleen.failure": fetch.failure,
                    },
                    error="FetchFailed" if fetch.failure else "",
                )
            if record.first_token_s is not None:
                self.moments.append(Moment("first token", record.arrived + record.first_token_s))
        usage = record.usage
        tracing.end(
            self.span,
            end,
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.usage.input_tokens": usage.prompt,
                "gen_ai.usage.output_tokens": usage.completion,
                "gen_ai.usage.cache_read.input_tokens": usage.cached.total,
                "baleen.request_id": record.request_id,
                "baleen.outcome": record.kind,
                "baleen.attempts": record.num_attempts,
            },
            sorted(self.moments, key=lambda moment: moment.at),
            error=error,
        )
