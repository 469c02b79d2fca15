"""The default policy: the ranks that cost the request the fewest seconds, as `rating` counts them.

The cost of the best prefill rank is part of that of every decode rank that needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from baleen.blocks import BLOCK_TOKENS
from router.policy.columns import Figures, Flags, Positions
from router.policy.rating import Rating
from router.policy.snapshot import Candidate, Decision, Parameters, Query, Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    """Costs over all ranks: of the prefill half, and of all that follows from the choice of a decode rank."""

    prefill_s: Figures
    decode_s: Figures
    takes_alone: Flags


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """The cheapest pair of ranks, or the cheapest decode rank alone; chance decides among near ties.

    Whichever of them computes may be told to fetch a longer prefix first.

    The candidates of the decision are the chosen ones; `candidates` gives all. Raises NotReady if no rank can decode
    now, CapacityError if the prompt fits none of them.
    """
    rating = Rating(snapshot, query, parameters, fetches=True)
    weighed = _weigh(rating)
    ranks = rating.ranks
    near = _near_ties(ranks.decode, weighed.decode_s, parameters)
    winner = _by_chance(snapshot, query, near)
    alone = bool(weighed.takes_alone[winner])
    chosen, source, computes = rating.candidate(winner, "alone" if alone else "handed"), None, winner
    if not alone:
        tied = _near_ties(ranks.prefill, weighed.prefill_s, parameters)
        computes = _by_chance(snapshot, query, tied)
        source = rating.candidate(computes, "prefill")
    fetch = rating.fetch(computes)
    reason = explain_choice(query, source, chosen)
    if fetch is not None:
        reason += f"; before it fetches {fetch.num_fetched} blocks from {fetch.holder}, to save {fetch.gain_s:.3f} s"
    if near.size > 1:
        reason += f"; by chance among {near.size} decode ranks that cost about the same"
    return replace(decide("cost", query, source, chosen, reason), fetch=fetch)


def candidates(snapshot: Snapshot, query: Query, parameters: Parameters) -> list[Candidate]:
    """Every rank that `choose` compares, with its terms; raises as it does."""
    rating = Rating(snapshot, query, parameters, fetches=True)
    weighed = _weigh(rating)
    return [rating.candidate(position, "prefill") for position in rating.ranks.prefill.tolist()] + [
        rating.candidate(position, "alone" if weighed.takes_alone[position] else "handed")
        for position in rating.ranks.decode.tolist()
    ]


def decide(policy: str, query: Query, source: Candidate | None, chosen: Candidate, reason: str) -> Decision:
    """The Decision for a prefill candidate (None: not needed) and a decode candidate."""
    return Decision(
        request_id=query.request_id,
        policy=policy,
        prefill=source.incarnation if source else None,
        decode=chosen.incarnation,
        has_room=chosen.has_room and (source is None or source.has_room),
        first_token_s=chosen.first_token_s + (source.first_token_s if source else 0.0),
        candidates=(chosen,) if source is None else (source, chosen),
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


def _weigh(rating: Rating) -> _Weighed:
    alone_s = rating.alone.total_s()
    prefill = rating.ranks.prefill
    if not prefill.size:
        return _Weighed(alone_s, alone_s, rating.must_alone)
    prefill_s = rating.prefill.total_s()
    handed_s = rating.handed.total_s() + prefill_s[prefill].min()
    takes_alone = rating.must_alone | (rating.may_alone & (alone_s <= handed_s))
    return _Weighed(prefill_s, np.where(takes_alone, alone_s, handed_s), takes_alone)


def _near_ties(ranks: Positions, cost_s: Figures, parameters: Parameters) -> Positions:
    """Those whose cost is the least, or so close to it that the figures cannot tell."""
    costs = cost_s[ranks]
    least = costs.min()
    near: Positions = ranks[costs <= least + max(parameters.near_tie_s, parameters.near_tie * least)]
    return near


def _by_chance(snapshot: Snapshot, query: Query, ranks: Positions) -> int:
    return int(ranks[snapshot.columns.chances(query.seed, ranks).argmin()])
