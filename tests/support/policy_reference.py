"""The cost policy written out plainly, one rank after the other: what router/policy/cost.py must decide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from statistics import median

from baleen.blocks import blocks_for
from router.policy.snapshot import Parameters, Query, RankView, Snapshot


@dataclass(frozen=True)
class ReferenceChoice:
    """costs: of every candidate by (is it for the prefill half, rank); a decode rank's without its prefill rank's.

    fetched: blocks that whoever computes is to fetch, from `holders`.
    """

    prefill: str | None
    decode: str
    first_token_s: float
    costs: dict[tuple[bool, str], float]
    fetched: int
    holders: set[str]


def reference_choice(snapshot: Snapshot, query: Query, parameters: Parameters) -> ReferenceChoice | None:
    """None if nobody can serve the request."""
    decode = [rank for rank in snapshot.ranks if rank.role != "prefill" and not rank.draining]
    decode = [rank for rank in decode if blocks_for(query.num_prompt_tokens + 1) <= rank.total_blocks]
    if not decode:
        return None
    decode = [rank for rank in decode if can_decode(rank, query)] or decode
    prefill = [rank for rank in snapshot.ranks if rank.role == "prefill" and not rank.draining]
    prefill = [rank for rank in prefill if query.shareable <= rank.total_blocks]
    prefill = [rank for rank in prefill if can_prefill(rank, query)] or prefill
    sums = _Sums(snapshot, query, parameters)
    sources = [(*sums.prefill(rank), rank) for rank in prefill]
    costs = {(True, rank.incarnation): cost for cost, _, rank in sources}
    ways: list[tuple[float, RankView, bool, float]] = []
    for rank in decode:
        must = rank.role == "mixed" or not prefill or query.held(rank) == query.shareable
        alone_cost, alone_first = sums.alone(rank, has_rivals=rank.role == "mixed" or not prefill)
        handed_cost, handed_first = sums.handed(rank)
        with_source = handed_cost + min((cost for cost, _, _ in sources), default=0.0)
        uncached = query.uncached(rank) - 64 * sums.fetched(rank)
        if must or (uncached <= parameters.short_tail_tokens and alone_cost <= with_source):
            ways.append((alone_cost, rank, True, alone_first))
            costs[False, rank.incarnation] = alone_cost
        else:
            ways.append((with_source, rank, False, handed_first))
            costs[False, rank.incarnation] = handed_cost
    near = [way for way in ways if way[0] <= _limit([cost for cost, *_ in ways], parameters)]
    _, chosen, alone, first_s = min(near, key=lambda way: chance(query, way[1]))
    if alone:
        return ReferenceChoice(None, chosen.incarnation, first_s, costs, sums.fetched(chosen), sums.holders())
    tied = [source for source in sources if source[0] <= _limit([cost for cost, *_ in sources], parameters)]
    _, source_first_s, source = min(tied, key=lambda rated: chance(query, rated[2]))
    fetched, first_s = sums.fetched(source), first_s + source_first_s
    return ReferenceChoice(source.incarnation, chosen.incarnation, first_s, costs, fetched, sums.holders())


def can_prefill(rank: RankView, query: Query) -> bool:
    return query.prefill_blocks(rank) <= rank.room and rank.num_requests < rank.max_running


def can_decode(rank: RankView, query: Query) -> bool:
    return query.decode_blocks(rank) <= rank.room and rank.num_requests < rank.max_running


def chance(query: Query, rank: RankView) -> int:
    mask = (1 << 64) - 1
    lot = int.from_bytes(blake2b(rank.incarnation.encode(), digest_size=8).digest(), "little")
    mixed = lot ^ (query.seed * 0x9E3779B97F4A7C15 & mask)
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & mask
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
    return mixed ^ mixed >> 31


def _limit(costs: list[float], parameters: Parameters) -> float:
    return min(costs) + max(parameters.near_tie_s, parameters.near_tie * min(costs))


class _Sums:
    """(cost, seconds to the first token) of one rank in one way."""

    def __init__(self, snapshot: Snapshot, query: Query, parameters: Parameters) -> None:
        self._snapshot, self._query, self._parameters = snapshot, query, parameters

    def prefill(self, rank: RankView) -> tuple[float, float]:
        speed, query = self._speed(rank, "prefill"), self._query
        queue, compute, saved = rank.tokens_ahead / speed, query.shareable * 64 / speed, query.held(rank) * 64 / speed
        saved += self.gain(rank)
        return queue + compute - saved * self._decay(queue), queue + compute - saved

    def alone(self, rank: RankView, *, has_rivals: bool) -> tuple[float, float]:
        speed, query = self._speed(rank, "prefill"), self._query
        queue, saved = rank.tokens_ahead / speed, query.held(rank) * 64 / speed
        compute = query.num_prompt_tokens / speed
        saved += self.gain(rank)
        credit = saved * (self._decay(queue) if has_rivals else 1.0)
        return queue + compute - credit + self._decoding(rank) + self._pressure(rank), queue + compute - saved

    def handed(self, rank: RankView) -> tuple[float, float]:
        speed, query, parameters = self._speed(rank, "prefill"), self._query, self._parameters
        queue = rank.tokens_ahead / speed
        compute = (query.num_prompt_tokens - query.shareable * 64) / speed
        num_bytes = query.prefill_blocks(rank) * parameters.block_bytes
        transfer = parameters.handoff_s + num_bytes / parameters.transfer_bytes_per_s
        first = queue + compute + transfer
        return first + self._decoding(rank) + self._pressure(rank), first

    def gain(self, rank: RankView) -> float:
        """Seconds saved by fetching all that the best holder has more than this rank, if that saves any."""
        parameters = self._parameters
        num_blocks = self._longest() - self._query.held(rank)
        if not parameters.fetch or num_blocks <= 0:
            return 0.0
        speed = self._query.transfer_bytes_per_s or parameters.transfer_bytes_per_s
        moving = parameters.handoff_s + num_blocks * parameters.block_bytes / speed
        return max(0.0, num_blocks * 64 / self._speed(rank, "prefill") - moving)

    def fetched(self, rank: RankView) -> int:
        return self._longest() - self._query.held(rank) if self.gain(rank) else 0

    def holders(self) -> set[str]:
        """Ranks that hold the longest prefix and, of those, have the fewest requests."""
        able = [rank for rank in self._able() if self._query.held(rank) == self._longest()]
        fewest = min((rank.num_requests for rank in able), default=0)
        return {rank.incarnation for rank in able if rank.num_requests == fewest}

    def _able(self) -> list[RankView]:
        barred = self._query.no_fetch
        return [rank for rank in self._snapshot.ranks if not rank.draining and rank.incarnation not in barred]

    def _longest(self) -> int:
        return max((self._query.held(rank) for rank in self._able()), default=0)

    def _decay(self, queue_s: float) -> float:
        return math.pow(0.5, queue_s / self._parameters.credit_half_life_s)

    def _decoding(self, rank: RankView) -> float:
        return self._parameters.horizon_tokens * (rank.num_requests + 1) / self._speed(rank, "decode")

    def _pressure(self, rank: RankView) -> float:
        used = min(0.99, (rank.total_blocks - rank.room + self._query.decode_blocks(rank)) / rank.total_blocks)
        return self._parameters.pressure_s * used / (1 - used)

    def _speed(self, rank: RankView, work: str) -> float:
        name = f"{work}_tokens_per_s"
        pool = [getattr(one, name) for one in self._snapshot.ranks if one.pool == rank.pool and getattr(one, name) > 0]
        default: float = getattr(self._parameters, f"default_{name}")
        return float(getattr(rank, name) or (median(pool) if pool else default))
