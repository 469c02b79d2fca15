"""What a router counts of its requests, for its metrics and its status."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from baleen.blocks import BLOCK_TOKENS, shareable_blocks
from baleen.metric_table import Labels
from baleen.metrics import histogram, histograms

if TYPE_CHECKING:
    from router.record import RequestRecord


class RequestMeters:
    """Totals since the start. Keys of the counts are values of the labels that `baleen.metric_table` names."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self.prompt_tokens: Counter[Labels] = Counter()
        self.cancels: Counter[Labels] = Counter()
        self.retries: Counter[Labels] = Counter()
        self.fetches: Counter[Labels] = Counter()
        self.migrations: Counter[Labels] = Counter()
        self.expected_hit_tokens: Counter[Labels] = Counter()
        self.actual_hit_tokens: Counter[Labels] = Counter()
        self.output_tokens = 0
        self.duration = histograms("request_duration_seconds")
        self.first_token = histograms("ttft_seconds")
        self.token_gap = histogram("itl_seconds")
        self.token_mean = histogram("tpot_seconds")
        self.queue = histogram("queue_seconds")
        self.migration = histogram("migration_seconds")
        self.prediction_error = histogram("predicted_ttft_error_seconds")

    def refused(self, code: str) -> None:
        """A call was refused before it became a request."""
        self.requests["rejected", code] += 1

    def ended(self, record: RequestRecord) -> None:
        """A request is over."""
        self.requests[record.kind, record.code] += 1
        self.duration[(record.kind,)].observe(record.seconds)
        self.output_tokens += record.usage.completion
        if record.kind == "cancelled":
            self.cancels[(record.phase,)] += 1
        if "queued" in record.phases:
            self.queue.observe(record.phases["queued"])
        if record.kind == "finished" and record.num_gaps:
            self.token_mean.observe(record.gaps_s / record.num_gaps)
        self._count_moves(record)
        if record.usage.counted:
            self._count_prompt(record)
        if record.first_token_s is not None:
            self.first_token[(_cache(record),)].observe(record.first_token_s)
            if record.predicted_first_token_s is not None and record.num_attempts == 1:
                self.prediction_error.observe(record.predicted_first_token_s - record.first_token_s)

    def _count_moves(self, record: RequestRecord) -> None:
        for number, cause in enumerate(record.moves, start=1):
            went_on = number < len(record.moves) or record.kind in ("finished", "cancelled")
            self.migrations[cause, "continued" if went_on else "failed"] += 1

    def _count_prompt(self, record: RequestRecord) -> None:
        usage, cached = record.usage, record.usage.cached
        self.prompt_tokens[("local_cache",)] += cached.decode
        self.prompt_tokens[("remote_cache",)] += cached.prefill + cached.fetched
        self.prompt_tokens[("computed",)] += usage.prompt - cached.total
        if record.num_attempts == 1:
            for half, tokens in record.expected_hits.items():
                self.expected_hit_tokens[(half,)] += tokens
                self.actual_hit_tokens[(half,)] += cached.decode if half == "decode" else cached.prefill


def _cache(record: RequestRecord) -> str:
    cached = record.usage.cached.total
    if not cached:
        return "miss"
    return "hit" if cached >= shareable_blocks(record.usage.prompt) * BLOCK_TOKENS else "partial"
