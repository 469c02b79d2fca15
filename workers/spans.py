"""The spans of a request on a rank, made when it has ended: what it computed, and the transfer of its blocks."""

from __future__ import annotations

from baleen.config import RankConfig
from baleen.reports import FinishReason
from baleen.tracing import Attribute, Moment, Tracing
from workers.engine.messages import Submit
from workers.journal import Entry

_GOOD = {FinishReason.STOP.value, FinishReason.LENGTH.value, "prefilled"}


class RankSpans:
    """Of all requests of one rank."""

    def __init__(self, tracing: Tracing, config: RankConfig) -> None:
        self._tracing = tracing
        self._place: dict[str, Attribute | None] = {
            "baleen.pool": config.serve.pool,
            "baleen.group": config.serve.group,
            "baleen.rank": config.parallel.rank,
        }

    def ended(self, entry: Entry, now: float) -> None:
        """A request is over; one that came without a trace begins none."""
        command = entry.command
        if not command.traceparent:
            return
        generates = isinstance(command, Submit)
        bad = [finish for finish in entry.finishes if finish not in _GOOD]
        moments = [Moment("preemption", at) for at in entry.preempted]
        if entry.first_token is not None:
            moments.append(Moment("first token", entry.first_token))
        error = bad[0] if bad else ""
        parent = self._tracing.record(
            "worker.decode" if generates else "worker.prefill",
            command.traceparent,
            (entry.arrived, now),
            {
                **self._place,
                "baleen.request_id": command.request_id,
                "baleen.queued_s": None if entry.started is None else entry.started - entry.arrived,
                "gen_ai.usage.input_tokens": entry.prompt_tokens,
                "gen_ai.usage.output_tokens": entry.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": entry.cached_tokens,
                "gen_ai.response.finish_reasons": sorted(set(entry.finishes)),
            },
            sorted(moments, key=lambda moment: moment.at),
            error=error,
        )
        if entry.pushed_from is not None:
            self._tracing.record("kv.transfer", parent, (entry.pushed_from, now), self._place, error=error)
