"""What a router exposes: the counts of its parts under the names of the table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from baleen.errors import NotReady
from baleen.metric_table import PHASES, Labels
from baleen.metrics import Histogram, Sample, histogram
from router.admission import Admission
from router.choice import Chooser, Placement
from router.index import PrefixIndex
from router.members import Members
from router.meters import RequestMeters
from router.proxy import Proxy
from router.quarantine import Quarantine
from router.retry import RetryBudget

SCRAPE_TIMEOUT_S = 5.0
"""How long a scrape waits for the event loop."""


@dataclass(slots=True, eq=False, kw_only=True)
class Parts:
    """The parts of one router that count. pools: every one that was ever seen, so that none vanishes with its ranks."""

    proxy: Proxy
    members: Members
    admission: Admission[Placement]
    chooser: Chooser
    meters: RequestMeters
    retries: RetryBudget
    quarantine: Quarantine
    index: PrefixIndex | None
    lag: Histogram = field(default_factory=lambda: histogram("event_loop_lag_seconds"))
    pools: set[str] = field(default_factory=set)

    def samples(self) -> Iterator[Sample]:
        """Everything, in the router's event loop."""
        yield from self._of_requests()
        yield from self._of_admission()
        yield from self._of_choices()
        yield from self._of_index()
        yield "event_loop_lag_seconds", (), self.lag
        yield "poison_quarantined_total", (), self.quarantine.num_added

    def _of_requests(self) -> Iterator[Sample]:
        meters = self.meters
        counts: Mapping[str, Mapping[Labels, int]] = {
            "requests_total": meters.requests,
            "prompt_tokens_total": meters.prompt_tokens,
            "cancels_total": meters.cancels,
            "retries_total": meters.retries,
            "prefix_fetches_total": meters.fetches,
            "migrations_total": meters.migrations,
            "route_expected_hit_tokens_total": meters.expected_hit_tokens,
            "route_actual_hit_tokens_total": meters.actual_hit_tokens,
        }
        for name, counter in counts.items():
            yield from ((name, labels, count) for labels, count in counter.items())
        yield from (("request_duration_seconds", labels, one) for labels, one in meters.duration.items())
        yield from (("ttft_seconds", labels, one) for labels, one in meters.first_token.items())
        yield "output_tokens_total", (), meters.output_tokens
        yield "itl_seconds", (), meters.token_gap
        yield "tpot_seconds", (), meters.token_mean
        yield "queue_seconds", (), meters.queue
        yield "migration_seconds", (), meters.migration
        yield "predicted_ttft_error_seconds", (), meters.prediction_error
        phases = self.proxy.phases()
        yield from (("inflight_requests", (phase,), phases[phase]) for phase in PHASES)

    def _of_admission(self) -> Iterator[Sample]:
        counts = self.admission.counts
        yield "admission_decisions_total", ("admitted", "room"), counts.admitted
        yield "admission_decisions_total", ("shed", "late"), counts.late
        yield "admission_decisions_total", ("shed", "queue_full"), counts.full
        yield "admission_decisions_total", ("expired", "deadline"), counts.expired
        yield "admission_decisions_total", ("expired", "no_rank"), counts.forsaken
        yield "retry_budget_remaining", (), self.retries.left

    def _of_choices(self) -> Iterator[Sample]:
        yield from (("route_decisions_total", labels, count) for labels, count in self.chooser.decisions.items())
        yield "route_seconds", (), self.chooser.seconds
        self.pools |= self.members.pools
        ready = [rank.pool for rank in self.members.snapshot().ranks if not rank.draining]
        yield from (("ready_workers", (pool,), ready.count(pool)) for pool in sorted(self.pools))

    def _of_index(self) -> Iterator[Sample]:
        if self.index is None:
            yield "kv_index_breaker_open", (), 0
            return
        counts = self.index.counts
        yield "kv_index_lookup_seconds", (), counts.seconds
        yield "kv_index_blind_total", (), counts.blind
        yield "kv_index_errors_total", (), counts.failures
        yield "kv_index_breaker_open", (), int(not self.index.is_asked)

    def read_from(self, loop: asyncio.AbstractEventLoop) -> list[Sample]:
        """The same for any other thread. Raises NotReady if the event loop does not come to it."""
        answer: Future[list[Sample]] = Future()

        def gather() -> None:
            try:
                answer.set_result(list(self.samples()))
            except Exception as error:
                answer.set_exception(error)

        loop.call_soon_threadsafe(gather)
        try:
            return answer.result(SCRAPE_TIMEOUT_S)
        except TimeoutError as error:
            raise NotReady(f"the router's event loop did not answer within {SCRAPE_TIMEOUT_S:g} s") from error
