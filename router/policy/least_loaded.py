"""The rank with the least to do, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable

from router.policy.cost import decide, decode_candidate, explain_choice, prefill_candidate
from router.policy.eligible import Speeds, chance, eligible, may_compute_alone
from router.policy.snapshot import Decision, Parameters, Query, RankView, Snapshot


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """To compute: the fewest prompt tokens ahead. To decode: the smallest share of places and of blocks in use.

    Chance decides among equals. Raises NotReady if no rank can decode now, CapacityError if the prompt fits none.
    """
    ranks = eligible(snapshot, query)
    speeds = Speeds(snapshot, parameters)
    rank = min(ranks.decode, key=_with_chance(query, _decode_load))
    alone = may_compute_alone(rank, query, ranks, parameters)
    chosen = decode_candidate(rank, query, ranks, speeds, parameters, alone=alone)
    source = None
    if not alone:
        least = min(ranks.prefill, key=_with_chance(query, lambda rank: rank.tokens_ahead / speeds.prefill(rank)))
        source = prefill_candidate(least, query, speeds, parameters)
    candidates = (chosen,) if source is None else (source, chosen)
    return decide(
        "least_loaded", query, source, chosen, candidates, f"least load: {explain_choice(query, source, chosen)}"
    )


def _decode_load(rank: RankView) -> float:
    return rank.num_requests / rank.max_running + (1 - rank.room / rank.total_blocks)


def _with_chance(query: Query, load: Callable[[RankView], float]) -> Callable[[RankView], tuple[float, bytes]]:
    return lambda rank: (load(rank), chance(query, rank))
