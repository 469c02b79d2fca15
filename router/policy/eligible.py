"""Who may serve a request at all: one answer for every policy."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np

from baleen.blocks import BLOCK_TOKENS, blocks_for
from baleen.errors import CapacityError, NotReady
from router.policy.columns import Columns, Figures, Flags, Positions
from router.policy.snapshot import Query, Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class Eligible:
    """Positions of ranks for each half: where some have room, those alone. No `prefill`: there is no such pool.

    Over all ranks of the snapshot: held, the blocks of the prompt that each need not compute; prefill_room and
    decode_room, whether each has blocks for its half now, and a place among the running.
    """

    prefill: Positions
    decode: Positions
    held: Figures
    prefill_room: Flags
    decode_room: Flags

    def must_compute_alone(self, columns: Columns, query: Query) -> Flags:
        """Which decode ranks have nobody who computes the prompt for them, or nothing that could be handed over."""
        if not self.prefill.size:
            return np.ones_like(columns.is_mixed)
        holds_all: Flags = self.held == query.shareable
        return columns.is_mixed | holds_all

    def may_compute_alone(
        self, columns: Columns, query: Query, short_tail_tokens: int, fetched: Figures | float = 0.0
    ) -> Flags:
        """Which decode ranks may compute what they lack of the prompt: they must, or it is but a short tail.

        fetched: blocks that each would have from another rank.
        """
        uncached = query.num_prompt_tokens - (self.held + fetched) * BLOCK_TOKENS
        return self.must_compute_alone(columns, query) | (uncached <= short_tail_tokens)


def eligible(snapshot: Snapshot, query: Query) -> Eligible:
    """The ranks that a policy chooses from: none that drains or is too small, and none that is full if another is not.

    Raises NotReady if no rank can decode now, CapacityError if the prompt is too long for every one that can.
    """
    columns = snapshot.columns
    alive = ~columns.draining
    decode = alive & ~columns.is_prefill
    if not decode.any():
        num_draining = int((~columns.is_prefill).sum())
        raise NotReady(
            f"no rank is there to decode; there are {len(snapshot.ranks) - num_draining} that only prefill "
            f"and {num_draining} that drain"
        )
    num_blocks = blocks_for(query.num_prompt_tokens + 1)
    fitting = decode & (columns.total_blocks >= num_blocks)
    if not fitting.any():
        most = int(columns.total_blocks[decode].max())
        raise CapacityError(
            f"the prompt has {query.num_prompt_tokens} tokens, the largest rank holds {most * BLOCK_TOKENS}"
        )
    prefill = alive & columns.is_prefill & (columns.total_blocks >= query.shareable)
    held = _held(columns, query)
    has_place = columns.num_requests < columns.max_running
    prefill_room = has_place & (query.shareable - held <= columns.room)
    decode_room = has_place & (num_blocks - held <= columns.room)
    return Eligible(
        _those_with_room(prefill, prefill_room), _those_with_room(fitting, decode_room), held, prefill_room, decode_room
    )


def _those_with_room(ranks: Flags, has_room: Flags) -> Positions:
    found = (ranks & has_room).nonzero()[0]
    return found if found.size else ranks.nonzero()[0]


def _held(columns: Columns, query: Query) -> Figures:
    held = np.zeros(len(columns.pools))
    most = query.shareable
    for incarnation, num_blocks in query.cached_blocks.items():
        position = columns.positions.get(incarnation)
        if position is not None:
            held[position] = max(0, min(num_blocks, most))
    return held


def speeds(columns: Columns, measured: Figures, default: float) -> Figures:
    """Speeds to count with: a rank's own, else the median of its pool, else the default. In tokens per second."""
    unmeasured = (measured <= 0).nonzero()[0]
    if not unmeasured.size:
        return measured
    known: dict[str, list[float]] = {}
    for pool, speed in zip(columns.pools, measured.tolist(), strict=True):
        if speed > 0:
            known.setdefault(pool, []).append(speed)
    medians = {pool: median(found) for pool, found in known.items()}
    filled = measured.copy()
    for position in unmeasured.tolist():
        filled[position] = medians.get(columns.pools[position], default)
    return filled
