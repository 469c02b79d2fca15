"""Each rank in turn, whatever its load: the policy that others are measured against."""

from __future__ import annotations

from router.policy.cost import decide, decode_candidate, explain_choice, prefill_candidate
from router.policy.eligible import Speeds, eligible, may_compute_alone
from router.policy.snapshot import Decision, Parameters, Query, RankView, Snapshot


def choose(snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
    """The ranks whose turn it is: `query.turn` counts, in the order of their names.

    Raises NotReady if no rank can decode now, CapacityError if the prompt fits none of them.
    """
    ranks = eligible(snapshot, query)
    speeds = Speeds(snapshot, parameters)
    rank = _in_turn(ranks.decode, query.turn)
    alone = may_compute_alone(rank, query, ranks, parameters)
    chosen = decode_candidate(rank, query, ranks, speeds, parameters, alone=alone)
    source = None
    if not alone:
        source = prefill_candidate(_in_turn(ranks.prefill, query.turn), query, speeds, parameters)
    candidates = (chosen,) if source is None else (source, chosen)
    return decide(
        "round_robin", query, source, chosen, candidates, f"turn {query.turn}: {explain_choice(query, source, chosen)}"
    )


def _in_turn(ranks: tuple[RankView, ...], turn: int) -> RankView:
    return sorted(ranks, key=lambda rank: rank.incarnation)[turn % len(ranks)]
