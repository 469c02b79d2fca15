"""Each rank in turn, whatever its load: the policy that others are measured against."""

from __future__ import annotations

from router.policy.columns import Positions
from router.policy.cost import decide, explain_choice
from router.policy.rating import Rating
from router.policy.snapshot import Decision, Parameters, Query, Snapshot


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """The ranks whose turn it is: `query.turn` counts, in the order of their names.

    Raises NotReady if no rank can decode now, CapacityError if the prompt fits none of them.
    """
    rating = Rating(snapshot, query, parameters)
    winner = _in_turn(snapshot, rating.ranks.decode, query.turn)
    alone = bool(rating.may_alone[winner])
    chosen, source = rating.candidate(winner, "alone" if alone else "handed"), None
    if not alone:
        source = rating.candidate(_in_turn(snapshot, rating.ranks.prefill, query.turn), "prefill")
    reason = f"turn {query.turn}: {explain_choice(query, source, chosen)}"
    return decide("round_robin", query, source, chosen, reason)


def _in_turn(snapshot: Snapshot, ranks: Positions, turn: int) -> int:
    ordered: list[int] = sorted(ranks.tolist(), key=lambda position: snapshot.ranks[position].incarnation)
    return ordered[turn % len(ordered)]
