"""What each rank would cost a request, term by term, in seconds: arrays over all ranks of a snapshot.

A prefill rank costs          tokens ahead / speed + prompt / speed - credit
a decode rank that is handed the prompt
                              tokens ahead / speed + tail / speed + bytes / bandwidth + decode + pressure
a decode rank that computes the prompt itself
                              tokens ahead / speed + prompt / speed - credit + decode + pressure

Less, for a rank that computes: what it saves to fetch a longer prefix first (`fetch`), counted as credit is.

credit: the time that cached blocks save, halved by every `credit_half_life_s` of queue at their holder where others
could compute them instead, so that one popular prefix does not draw all requests to one rank. decode: what the first
`horizon_tokens` take in the company of the rank's other requests. pressure: pressure_s * k/(1-k), k the share of blocks
in use with this request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np

from baleen.blocks import BLOCK_TOKENS, blocks_for
from router.policy.columns import Figures, Flags
from router.policy.eligible import Eligible, eligible, speeds
from router.policy.fetch import best_offer, plan
from router.policy.snapshot import Candidate, FetchPlan, Parameters, Query, Snapshot, Terms

Way = Literal["prefill", "handed", "alone"]
"""What a rank would do: compute the whole blocks of the prompt for another, be handed them, or compute all itself."""

_FULLEST = 0.99
"""Largest share of blocks in use that is told apart, so that k/(1-k) is finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """The terms of one way, [R], or a number where all ranks have the same. See `Terms` and `Candidate`."""

    queue_s: Figures
    compute_s: Figures
    first_token_s: Figures
    credit_s: Figures | float = 0.0
    fetch_s: Figures | float = 0.0
    transfer_s: Figures | float = 0.0
    decode_s: Figures | float = 0.0
    pressure_s: Figures | float = 0.0

    def total_s(self) -> Figures:
        """What ranks are compared by."""
        spent_s = self.queue_s + self.compute_s + self.transfer_s + self.decode_s + self.pressure_s
        return spent_s + self.credit_s + self.fetch_s


_TERMS = tuple(field.name for field in fields(Terms))


class Rating:
    """The cost of every rank for one request, in each way, worked out when it is first asked for."""

    def __init__(self, snapshot: Snapshot, query: Query, parameters: Parameters, *, fetches: bool = False) -> None:
        """fetches: whether ranks may fetch from each other. Raises NotReady and CapacityError, as `eligible`."""
        self.ranks: Eligible = eligible(snapshot, query)
        self._snapshot = snapshot
        self._query = query
        self._parameters = parameters
        columns = self._columns = snapshot.columns
        self._speed = speeds(columns, columns.prefill_tokens_per_s, parameters.default_prefill_tokens_per_s)
        self._queue_s = columns.tokens_ahead / self._speed
        self._saved_s = self.ranks.held * BLOCK_TOKENS / self._speed
        self._offer = best_offer(columns, self.ranks.held, self._speed, query, parameters) if fetches else None
        self._gain_s: Figures | float = 0.0 if self._offer is None else self._offer.gain_s

    @cached_property
    def prefill(self) -> Cost:
        """Of a rank that computes the whole blocks of the prompt for another."""
        compute_s = self._query.shareable * BLOCK_TOKENS / self._speed
        return Cost(
            queue_s=self._queue_s,
            compute_s=compute_s,
            credit_s=-self._saved_s * self._decay,
            fetch_s=-self._gain_s * self._decay,
            first_token_s=self._queue_s + compute_s - self._saved_s - self._gain_s,
        )

    @cached_property
    def handed(self) -> Cost:
        """Of a decode rank that is handed the whole blocks of the prompt; without what computing them costs."""
        query, parameters = self._query, self._parameters
        compute_s = (query.num_prompt_tokens - query.shareable * BLOCK_TOKENS) / self._speed
        num_bytes = (query.shareable - self.ranks.held) * parameters.block_bytes
        transfer_s = parameters.handoff_s + num_bytes / parameters.transfer_bytes_per_s
        return Cost(
            queue_s=self._queue_s,
            compute_s=compute_s,
            transfer_s=transfer_s,
            decode_s=self._decode_s,
            pressure_s=self._pressure_s,
            first_token_s=self._queue_s + compute_s - 0.0 + transfer_s,
        )

    @cached_property
    def alone(self) -> Cost:
        """Of a decode rank that computes the prompt itself."""
        compute_s = self._query.num_prompt_tokens / self._speed
        worth = self._decay
        if self.ranks.prefill.size:
            # only mixed ranks have rivals that could compute instead
            worth = np.where(self._columns.is_mixed, worth, 1.0)
        return Cost(
            queue_s=self._queue_s,
            compute_s=compute_s,
            credit_s=-self._saved_s * worth,
            fetch_s=-self._gain_s * worth,
            decode_s=self._decode_s,
            pressure_s=self._pressure_s,
            first_token_s=self._queue_s + compute_s - self._saved_s - self._gain_s,
        )

    @cached_property
    def must_alone(self) -> Flags:
        """Which decode ranks must compute the prompt themselves."""
        return self.ranks.must_compute_alone(self._columns, self._query)

    @cached_property
    def may_alone(self) -> Flags:
        """Which decode ranks may compute the prompt themselves."""
        fetched = 0.0 if self._offer is None else self._offer.fetched
        return self.ranks.may_compute_alone(self._columns, self._query, self._parameters.short_tail_tokens, fetched)

    def candidate(self, position: int, way: Way) -> Candidate:
        """One rank and one way, to be shown."""
        cost: Cost = getattr(self, way)
        rank = self._snapshot.ranks[position]
        room = self.ranks.prefill_room if way == "prefill" else self.ranks.decode_room
        return Candidate(
            incarnation=rank.incarnation,
            half="prefill" if way == "prefill" else "mixed" if way == "alone" else "decode",
            cached_blocks=int(self.ranks.held[position]),
            has_room=bool(room[position]),
            alone=way == "alone",
            terms=Terms(**{name: _at(getattr(cost, name), position) for name in _TERMS}),
            first_token_s=_at(cost.first_token_s, position),
        )

    def fetch(self, position: int) -> FetchPlan | None:
        """What a rank is to fetch before it computes the prompt."""
        return plan(self._snapshot, self._offer, position, float(self._speed[position]))

    @cached_property
    def _decay(self) -> Figures:
        decay = np.ones_like(self._queue_s)
        saves = self.ranks.held + self._gain_s
        holders = saves.nonzero()[0]
        half_lives = (self._queue_s[holders] / self._parameters.credit_half_life_s).tolist()
        decay[holders] = [math.pow(0.5, number) for number in half_lives]
        return decay

    @cached_property
    def _decode_s(self) -> Figures:
        columns = self._columns
        speed = speeds(columns, columns.decode_tokens_per_s, self._parameters.default_decode_tokens_per_s)
        return self._parameters.horizon_tokens * (columns.num_requests + 1) / speed

    @cached_property
    def _pressure_s(self) -> Figures:
        total = self._columns.total_blocks
        needed = blocks_for(self._query.num_prompt_tokens + 1) - self.ranks.held
        used: Figures = np.minimum(_FULLEST, (total - self._columns.room + needed) / np.maximum(total, 1))
        return self._parameters.pressure_s * used / (1 - used)


def _at(values: Figures | float, position: int) -> float:
    return values if isinstance(values, float) else float(values[position])
