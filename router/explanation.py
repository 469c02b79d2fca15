"""The answer to Explain: what the records and the policy's own memory know of a request, as one message."""

from __future__ import annotations

from dataclasses import asdict

from baleen.blocks import BLOCK_TOKENS
from baleen.config import Role
from baleen.errors import UnknownName
from baleen.ids import Incarnation
from baleen.v1 import inference_pb2
from baleen.wire.reports import role_to_proto
from router.members import Members
from router.policy.explain import Explainer, Explanation
from router.policy.snapshot import Candidate
from router.record import RequestRecord


def explanation_to_proto(
    record: RequestRecord, explainer: Explainer, members: Members
) -> inference_pb2.ExplainResponse:
    """Decisions, one for each half, phases with their times, and the outcome with its usage."""
    try:
        explanations = explainer.explain(record.request_id)
    except UnknownName:
        # never placed, or its decisions are forgotten before its record
        explanations = []
    usage = record.usage
    outcome = record.outcome
    if outcome:
        outcome += (
            f"; tokens: {usage.prompt} prompt ({usage.cached.decode} cached on the decode rank, "
            f"{usage.cached.prefill} on the prefill rank, {usage.cached.fetched} fetched from another), "
            f"{usage.completion} completion; {record.num_attempts} attempts"
        )
    return inference_pb2.ExplainResponse(
        request_id=record.request_id,
        prompt_tokens=usage.prompt,
        decisions=[decision for one in explanations for decision in _decisions(one, members)],
        milestones=[inference_pb2.Milestone(at_s=at_s, event=event) for at_s, event in record.milestones],
        outcome=outcome,
    )


def _decisions(one: Explanation, members: Members) -> list[inference_pb2.Decision]:
    decision = one.decision
    halves: list[inference_pb2.Decision] = []
    if decision.prefill is not None:
        halves.append(_half(one, members, prefill=True))
    halves.append(_half(one, members, prefill=False))
    return halves


def _half(one: Explanation, members: Members, *, prefill: bool) -> inference_pb2.Decision:
    decision = one.decision
    chosen = decision.prefill if prefill else decision.decode
    candidates = sorted(
        (candidate for candidate in one.candidates if (candidate.half == "prefill") == prefill),
        key=lambda candidate: candidate.terms.total_s,
    )
    alternatives = {other.policy: (other.prefill if prefill else other.decode) or "none" for other in one.alternatives}
    role: Role = next((candidate.half for candidate in candidates if candidate.incarnation == chosen), "decode")
    return inference_pb2.Decision(
        role=role_to_proto(role),
        policy=decision.policy,
        chosen=_name(chosen, members),
        candidates=[_candidate(candidate, members) for candidate in candidates],
        alternatives={policy: _name(name, members) for policy, name in alternatives.items()},
        note=decision.reason,
    )


def _candidate(candidate: Candidate, members: Members) -> inference_pb2.Candidate:
    return inference_pb2.Candidate(
        rank=_name(candidate.incarnation, members),
        incarnation=candidate.incarnation,
        terms=asdict(candidate.terms),
        cost_s=candidate.terms.total_s,
        cached_tokens=candidate.cached_blocks * BLOCK_TOKENS,
        excluded="" if candidate.has_room else "no room",
    )


def _name(incarnation: str | None, members: Members) -> str:
    """pool/group/rank while the rank is known, else what names this life of it."""
    if incarnation is None:
        return ""
    info = members.info(Incarnation(incarnation))
    return incarnation if info is None else f"{info.pool}/{info.group}/{info.rank}"
