"""The rank with the least to do, whatever it holds."""

from __future__ import annotations

from router.policy.columns import Figures, Positions
from router.policy.cost import decide, explain_choice
from router.policy.rating import Rating
from router.policy.snapshot import Decision, Parameters, Query, Snapshot


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """To compute: the fewest prompt tokens ahead. To decode: the smallest share of places and of blocks in use.

    Chance decides among equals. Raises NotReady if no rank can decode now, CapacityError if the prompt fits none.
    """
    rating = Rating(snapshot, query, parameters)
    columns, ranks = snapshot.columns, rating.ranks
    load = columns.num_requests / columns.max_running + (1 - columns.room / columns.total_blocks)
    winner = _least(snapshot, query, ranks.decode, load)
    alone = bool(rating.may_alone[winner])
    chosen, source = rating.candidate(winner, "alone" if alone else "handed"), None
    if not alone:
        source = rating.candidate(_least(snapshot, query, ranks.prefill, rating.prefill.queue_s), "prefill")
    return decide("least_loaded", query, source, chosen, f"least load: {explain_choice(query, source, chosen)}")


def _least(snapshot: Snapshot, query: Query, ranks: Positions, load: Figures) -> int:
    loads = load[ranks]
    equal = ranks[loads == loads.min()]
    return int(equal[snapshot.columns.chances(query.seed, equal).argmin()])
