"""The last decisions, with what came of them and what the other policies would have done."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from baleen.cluster_config import PolicyName
from baleen.errors import UnknownName
from router.policy.cost import candidates
from router.policy.registry import POLICIES
from router.policy.snapshot import Candidate, Decision, Parameters, Query, Snapshot

MOST_DECISIONS = 4096
MOST_VIEWS = 200_000
"""Ranks in all kept snapshots together: some 90 MB if no two of them share one."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What another policy would have chosen from the same snapshot."""

    policy: PolicyName
    prefill: str | None
    decode: str
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision. candidates: all that were compared, the chosen ones first; of a decision so old that its snapshot
    is gone, the chosen ones only, and no alternatives. outcome: what is known of it now, as the router wrote it.
    """

    decision: Decision
    query: Query
    candidates: tuple[Candidate, ...]
    alternatives: tuple[Alternative, ...]
    outcome: tuple[tuple[str, str | int | float], ...]


@dataclass(slots=True, eq=False)
class _Kept:
    snapshot: Snapshot | None
    query: Query
    decision: Decision
    outcome: dict[str, str | int | float] = field(default_factory=dict)


class Explainer:
    """Keeps the last `capacity` decisions, and the snapshots of the last of them, `most_views` ranks in all.

    Candidates and alternatives are worked out when asked for.
    """

    def __init__(self, parameters: Parameters, *, capacity: int = MOST_DECISIONS, most_views: int = MOST_VIEWS) -> None:
        assert capacity >= 1
        self._parameters = parameters
        self._capacity = capacity
        self._most_views = most_views
        self._kept: OrderedDict[str, list[_Kept]] = OrderedDict()
        self._num_kept = 0
        self._viewed: deque[_Kept] = deque()
        self._num_views = 0

    def __len__(self) -> int:
        return self._num_kept

    @property
    def num_views(self) -> int:
        """Ranks in all kept snapshots together."""
        return self._num_views

    def record(self, snapshot: Snapshot, query: Query, decision: Decision) -> None:
        """Keep a decision. A request that is moved has several."""
        # a snapshot of its own, without the arrays that the policy worked with
        kept = _Kept(Snapshot(snapshot.ranks), query, decision)
        self._kept.setdefault(query.request_id, []).append(kept)
        self._kept.move_to_end(query.request_id)
        self._num_kept += 1
        while self._num_kept > self._capacity:
            request_id, oldest = next(iter(self._kept.items()))
            self._forget_snapshot(oldest.pop(0))
            self._num_kept -= 1
            if not oldest:
                del self._kept[request_id]
        self._viewed.append(kept)
        self._num_views += len(snapshot.ranks)
        while self._viewed and (self._viewed[0].snapshot is None or self._num_views > self._most_views):
            self._forget_snapshot(self._viewed.popleft())

    def _forget_snapshot(self, kept: _Kept) -> None:
        if kept.snapshot is not None:
            self._num_views -= len(kept.snapshot.ranks)
            kept.snapshot = None

    def note(self, request_id: str, **outcome: str | int | float) -> None:
        """Add to the outcome of the request's last decision; nothing, if it is forgotten already."""
        kept = self._kept.get(request_id)
        if kept:
            kept[-1].outcome.update(outcome)

    def explain(self, request_id: str) -> list[Explanation]:
        """The request's decisions, the first one first. Raises UnknownName if none is kept."""
        kept = self._kept.get(request_id)
        if not kept:
            raise UnknownName(
                f"no decision about request {request_id} is kept; each router keeps the last {self._capacity}"
            )
        return [
            Explanation(
                one.decision, one.query, self._candidates(one), self._alternatives(one), tuple(one.outcome.items())
            )
            for one in kept
        ]

    def _candidates(self, kept: _Kept) -> tuple[Candidate, ...]:
        chosen = kept.decision.candidates
        if kept.snapshot is None:
            return chosen
        known = {(candidate.half == "prefill", candidate.incarnation) for candidate in chosen}
        return chosen + tuple(
            candidate
            for candidate in candidates(kept.snapshot, kept.query, self._parameters)
            if (candidate.half == "prefill", candidate.incarnation) not in known
        )

    def _alternatives(self, kept: _Kept) -> tuple[Alternative, ...]:
        found: list[Alternative] = []
        for name, policy in POLICIES.items():
            if name == kept.decision.policy or kept.snapshot is None:
                continue
            # it finds somebody: who may serve the request at all is the same for every policy
            other = policy(kept.snapshot, kept.query, self._parameters)
            found.append(Alternative(name, other.prefill, other.decode, other.first_token_s))
        return tuple(found)
