"""The default policy: the ranks that cost the request the fewest seconds.

A prefill rank costs          tokens ahead / speed + prompt / speed - credit
a decode rank that is handed the prompt
                              tokens ahead / speed + tail / speed + bytes / bandwidth + decode + pressure
a decode rank that computes the prompt itself
                              tokens ahead / speed + prompt / speed - credit + decode + pressure

credit: the time that cached blocks save, halved by every `credit_half_life_s` of queue at their holder where others
could compute them instead, so that one popular prefix does not draw all requests to one rank. decode: what the first
`horizon_tokens` take in the company of the rank's other requests. pressure: pressure_s * k/(1-k), k the share of blocks
in use with this request. The cost of the best prefill rank is part of that of every decode rank that needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from baleen.blocks import BLOCK_TOKENS
from router.policy.eligible import (
    Eligible,
    Speeds,
    can_decode,
    can_prefill,
    chance,
    eligible,
    may_compute_alone,
    must_compute_alone,
)
from router.policy.snapshot import Candidate, Decision, Parameters, Query, RankView, Snapshot, Terms

_FULLEST = 0.99
"""Largest share of blocks in use that is told apart, so that k/(1-k) is finite."""

Rated = TypeVar("Rated")


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """The cheapest pair of ranks, or the cheapest decode rank alone; chance decides among near ties.

    Raises NotReady if no rank can decode now, CapacityError if the prompt fits none of them.
    """
    ranks = eligible(snapshot, query)
    speeds = Speeds(snapshot, parameters)
    prefill = [(rank, prefill_candidate(rank, query, speeds, parameters)) for rank in ranks.prefill]
    handed = min((candidate.terms.total_s for _, candidate in prefill), default=0.0)
    decode: list[tuple[RankView, Candidate, float]] = []
    for rank in ranks.decode:
        candidate, cost = _cheapest_way(rank, query, ranks, speeds, parameters, handed)
        decode.append((rank, candidate, cost))
    near = _near_ties(decode, lambda rated: rated[2], parameters)
    chosen = min(near, key=lambda rated: chance(query, rated[0]))[1]
    source = None
    if not chosen.alone:
        tied = _near_ties(prefill, lambda rated: rated[1].terms.total_s, parameters)
        source = min(tied, key=lambda rated: chance(query, rated[0]))[1]
    reason = explain_choice(query, source, chosen)
    if len(near) > 1:
        reason += f"; by chance among {len(near)} decode ranks that cost about the same"
    candidates = [candidate for _, candidate in prefill] + [candidate for _, candidate, _ in decode]
    return decide("cost", query, source, chosen, candidates, reason)


def decide(
    policy: str,
    query: Query,
    source: Candidate | None,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    reason: str,
) -> Decision:
    """The Decision for a prefill candidate (None: not needed) and a decode candidate."""
    return Decision(
        request_id=query.request_id,
        policy=policy,
        prefill=source.incarnation if source else None,
        decode=chosen.incarnation,
        has_room=chosen.has_room and (source is None or source.has_room),
        first_token_s=chosen.first_token_s + (source.first_token_s if source else 0.0),
        candidates=tuple(candidates),
        reason=reason,
    )


def explain_choice(query: Query, source: Candidate | None, chosen: Candidate) -> str:
    """Why the request takes one rank or two, in a sentence."""
    held = f"{chosen.cached_blocks} of {query.shareable} blocks"
    if source is None:
        tokens = query.num_prompt_tokens - chosen.cached_blocks * BLOCK_TOKENS
        return f"{chosen.incarnation} holds {held} and computes {tokens} tokens itself"
    return (
        f"{chosen.incarnation} holds {held}, {source.incarnation} holds {source.cached_blocks} and computes the others"
    )


def prefill_candidate(rank: RankView, query: Query, speeds: Speeds, parameters: Parameters) -> Candidate:
    """A rank that computes the whole blocks of the prompt for another."""
    speed = speeds.prefill(rank)
    held = query.held(rank)
    queue_s = rank.tokens_ahead / speed
    compute_s = query.shareable * BLOCK_TOKENS / speed
    saved_s = held * BLOCK_TOKENS / speed
    terms = Terms(queue_s=queue_s, compute_s=compute_s, credit_s=-saved_s * _decay(queue_s, parameters))
    return Candidate(
        incarnation=rank.incarnation,
        half="prefill",
        cached_blocks=held,
        has_room=can_prefill(rank, query),
        alone=False,
        terms=terms,
        first_token_s=queue_s + compute_s - saved_s,
    )


def decode_candidate(
    rank: RankView, query: Query, ranks: Eligible, speeds: Speeds, parameters: Parameters, *, alone: bool
) -> Candidate:
    """A decode rank that is handed the prompt, or computes it alone."""
    speed = speeds.prefill(rank)
    held = query.held(rank)
    queue_s = rank.tokens_ahead / speed
    transfer_s = saved_s = credit_s = 0.0
    if alone:
        compute_s = query.num_prompt_tokens / speed
        saved_s = held * BLOCK_TOKENS / speed
        has_rivals = rank.role == "mixed" or not ranks.prefill
        credit_s = -saved_s * (_decay(queue_s, parameters) if has_rivals else 1.0)
    else:
        compute_s = (query.num_prompt_tokens - query.shareable * BLOCK_TOKENS) / speed
        num_bytes = query.prefill_blocks(rank) * parameters.block_bytes
        transfer_s = parameters.handoff_s + num_bytes / parameters.transfer_bytes_per_s
    used = min(_FULLEST, (rank.total_blocks - rank.room + query.decode_blocks(rank)) / rank.total_blocks)
    terms = Terms(
        queue_s=queue_s,
        compute_s=compute_s,
        credit_s=credit_s,
        transfer_s=transfer_s,
        decode_s=parameters.horizon_tokens * (rank.num_requests + 1) / speeds.decode(rank),
        pressure_s=parameters.pressure_s * used / (1 - used),
    )
    return Candidate(
        incarnation=rank.incarnation,
        half="mixed" if alone else "decode",
        cached_blocks=held,
        has_room=can_decode(rank, query),
        alone=alone,
        terms=terms,
        first_token_s=queue_s + compute_s - saved_s + transfer_s,
    )


def _cheapest_way(
    rank: RankView, query: Query, ranks: Eligible, speeds: Speeds, parameters: Parameters, handed_s: float
) -> tuple[Candidate, float]:
    """How a decode rank gets the prompt for the least, and what it costs in all. handed_s: the best prefill rank's."""
    alone = None
    if may_compute_alone(rank, query, ranks, parameters):
        alone = decode_candidate(rank, query, ranks, speeds, parameters, alone=True)
        if must_compute_alone(rank, query, ranks):
            return alone, alone.terms.total_s
    given = decode_candidate(rank, query, ranks, speeds, parameters, alone=False)
    cost = given.terms.total_s + handed_s
    if alone is not None and alone.terms.total_s <= cost:
        return alone, alone.terms.total_s
    return given, cost


def _decay(queue_s: float, parameters: Parameters) -> float:
    return math.pow(0.5, queue_s / parameters.credit_half_life_s)


def _near_ties(rated: Sequence[Rated], cost: Callable[[Rated], float], parameters: Parameters) -> list[Rated]:
    """Those whose cost is the least, or so close to it that the figures cannot tell."""
    least = min(map(cost, rated))
    limit = least + max(parameters.near_tie_s, parameters.near_tie * least)
    return [item for item in rated if cost(item) <= limit]
