"""The last decisions, with what came of them and what the other policies would have done."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace

from baleen.cluster_config import PolicyName
from baleen.errors import BaleenError, UnknownName
from router.policy.registry import POLICIES
from router.policy.snapshot import Candidate, Decision, Parameters, Query, Snapshot

MOST_DECISIONS = 4096
SHOWN_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Alternative:
    """What another policy would have chosen. error: why it would have chosen nobody."""

    policy: PolicyName
    prefill: str | None
    decode: str | None
    first_token_s: float | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision. outcome: what is known of it now, as the router wrote it: names and values."""

    decision: Decision
    query: Query
    num_candidates: int
    alternatives: tuple[Alternative, ...]
    outcome: tuple[tuple[str, str | int | float], ...]


@dataclass(slots=True, eq=False)
class _Kept:
    snapshot: Snapshot
    query: Query
    decision: Decision
    num_candidates: int
    outcome: dict[str, str | int | float] = field(default_factory=dict)


class Explainer:
    """Keeps the last `capacity` decisions. Alternatives are worked out when asked for, from the same snapshot."""

    def __init__(self, parameters: Parameters, *, capacity: int = MOST_DECISIONS) -> None:
        assert capacity >= 1
        self._parameters = parameters
        self._capacity = capacity
        self._kept: OrderedDict[str, list[_Kept]] = OrderedDict()
        self._num_kept = 0

    def __len__(self) -> int:
        return self._num_kept

    def record(self, snapshot: Snapshot, query: Query, decision: Decision) -> None:
        """Keep a decision. A request that is moved has several."""
        shown = _most_telling(decision)
        kept = _Kept(snapshot, query, replace(decision, candidates=shown), len(decision.candidates))
        self._kept.setdefault(query.request_id, []).append(kept)
        self._kept.move_to_end(query.request_id)
        self._num_kept += 1
        while self._num_kept > self._capacity:
            request_id, oldest = next(iter(self._kept.items()))
            oldest.pop(0)
            self._num_kept -= 1
            if not oldest:
                del self._kept[request_id]

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
                one.decision, one.query, one.num_candidates, self._alternatives(one), tuple(one.outcome.items())
            )
            for one in kept
        ]

    def _alternatives(self, kept: _Kept) -> tuple[Alternative, ...]:
        found = []
        for name, policy in POLICIES.items():
            if name == kept.decision.policy:
                continue
            try:
                other = policy(kept.snapshot, kept.query, self._parameters)
            except BaleenError as error:
                found.append(Alternative(name, None, None, None, str(error)))
            else:
                found.append(Alternative(name, other.prefill, other.decode, other.first_token_s))
        return tuple(found)


def _most_telling(decision: Decision) -> tuple[Candidate, ...]:
    """The chosen candidates, then the cheapest of the others."""
    chosen = {("prefill", decision.prefill), ("decode", decision.decode)}
    ordered = sorted(
        decision.candidates,
        key=lambda candidate: (
            ("prefill" if candidate.half == "prefill" else "decode", candidate.incarnation) not in chosen,
            candidate.terms.total_s,
        ),
    )
    return tuple(ordered[:SHOWN_CANDIDATES])
