"""What a rank exposes: the counts of its parts under the names of the table, read from the thread that is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baleen.config import RankConfig
from baleen.metrics import Histogram, Sample
from workers.engine.loop import StepLoop

if TYPE_CHECKING:
    from workers.cache.announce import Announcer
    from workers.startup import Engine


@dataclass(slots=True, eq=False)
class RankParts:
    """The parts of a rank that count; None while they are not there yet. lag: of the event loop of its server."""

    config: RankConfig
    lag: Histogram | None = None
    engine: Engine | None = None
    loop: StepLoop | None = None
    announcer: Announcer | None = None

    def samples(self) -> Iterator[Sample]:
        """Everything. Counters may be a step apart from each other, the blocks by state are of one moment."""
        serve, parallel = self.config.serve, self.config.parallel
        yield "rank_info", (serve.pool, serve.group, str(parallel.rank), serve.role, parallel.epoch), 1
        if self.lag is not None:
            yield "event_loop_lag_seconds", (), self.lag
        yield "kv_index_lease_held", (), int(self.announcer is not None and self.announcer.registered)
        if self.announcer is not None:
            yield "kv_index_leases_lost_total", (), self.announcer.num_leases_lost
            yield "kv_index_errors_total", (), self.announcer.num_failures
        if self.engine is not None and self.loop is not None:
            yield from self._of_engine(self.engine)
            yield from self._of_moves(self.engine)
            yield from self._of_loop(self.loop)

    def _of_engine(self, engine: Engine) -> Iterator[Sample]:
        tallies = engine.scheduler.tallies
        yield "rank_prompt_tokens_total", ("cached",), tallies.cached_prompt_tokens
        yield "rank_prompt_tokens_total", ("computed",), tallies.prompt_tokens - tallies.cached_prompt_tokens
        yield "rank_output_tokens_total", (), tallies.output_tokens
        yield "preemptions_total", (), tallies.preemptions
        yield "kv_evictions_total", (), engine.scheduler.blocks.num_evicted

    def _of_moves(self, engine: Engine) -> Iterator[Sample]:
        moves = engine.moves
        counts, transport = moves.counts, moves.transport_counts
        yield "transport_info", (moves.transport or "none",), 1
        yield "kv_transfer_bytes_total", ("in",), counts.blocks_in * transport.block_bytes
        yield "kv_transfer_bytes_total", ("out",), counts.blocks_out * transport.block_bytes
        yield "kv_transfer_seconds", ("in",), counts.seconds_in
        yield "kv_transfer_seconds", ("out",), counts.seconds_out
        yield "kv_transfer_failures_total", ("in",), counts.failures_in
        yield "kv_transfer_failures_total", ("out",), counts.failures_out
        yield "kv_reservations_expired_total", (), counts.expired
        yield "kv_checksum_failures_total", (), transport.damaged
        yield "kv_fenced_writes_total", (), transport.fenced

    def _of_loop(self, loop: StepLoop) -> Iterator[Sample]:
        yield from (("step_seconds", labels, one) for labels, one in loop.meters.steps.items())
        yield from (("rank_completions_total", labels, count) for labels, count in list(loop.meters.ends.items()))
        yield "cancel_release_seconds", (), loop.meters.cancel_release
        load = loop.load
        if load is None:
            return
        yield "rank_requests", ("waiting",), load.num_waiting
        yield "rank_requests", ("running",), load.num_running
        yield "kv_blocks", ("free",), load.free_blocks - load.cached_blocks
        yield "kv_blocks", ("held",), load.held_blocks
        yield "kv_blocks", ("cached",), load.cached_blocks
        yield "kv_blocks", ("arriving",), load.arriving_blocks
        yield "kv_blocks", ("lent",), load.lent_blocks
