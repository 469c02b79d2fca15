"""The store of decisions: bounded, with the outcome and what other policies would have chosen."""

from dataclasses import replace

import pytest

from baleen.errors import UnknownName
from router.policy import cost
from router.policy.explain import Explainer
from router.policy.snapshot import Parameters
from tests.support.ranks import query, snapshot, view

PARAMETERS = Parameters(fetch=False)


def decide(explainer, ranks, question):
    decision = cost.choose(ranks, question, PARAMETERS)
    explainer.record(ranks, question, decision)
    return decision


def test_a_decision_is_kept_with_its_outcome_and_the_alternatives():
    explainer = Explainer(PARAMETERS)
    ranks = snapshot(view("holder", "mixed", queued_tokens=500), view("idle", "mixed"))
    question = query(3000, holder=40)
    decision = decide(explainer, ranks, question)
    explainer.note("request", finish="stop", first_token_s=0.9)
    explainer.note("request", completion_tokens=7)
    [explanation] = explainer.explain("request")
    assert explanation.decision == decision
    assert explanation.query == question
    assert dict(explanation.outcome) == {"finish": "stop", "first_token_s": 0.9, "completion_tokens": 7}
    assert {other.policy: other.decode for other in explanation.alternatives} == {
        "least_loaded": explanation.alternatives[0].decode,
        "round_robin": "holder",
    }
    assert decision.decode == "holder"


def test_every_move_of_a_request_is_a_decision_of_its_own():
    explainer = Explainer(PARAMETERS)
    decide(explainer, snapshot(view("a")), query())
    explainer.note("request", lost="a")
    decide(explainer, snapshot(view("b")), query())
    first, second = explainer.explain("request")
    assert (first.decision.decode, second.decision.decode) == ("a", "b")
    assert (first.outcome, second.outcome) == ((("lost", "a"),), ())


def test_only_the_last_are_kept():
    explainer = Explainer(PARAMETERS, capacity=3)
    ranks = snapshot(view("a"))
    for name in ("r0", "r1", "r2", "r0", "r3"):
        decide(explainer, ranks, replace(query(), request_id=name))
    assert len(explainer) == 3
    for name in ("r1", "r2"):
        explainer.note(name, finish="stop")
        with pytest.raises(UnknownName, match="last 3"):
            explainer.explain(name)
    assert len(explainer.explain("r0")) == 2, "moved not long ago"
    assert len(explainer.explain("r3")) == 1


def test_all_candidates_are_shown_the_chosen_ones_first():
    explainer = Explainer(PARAMETERS)
    ranks = snapshot(
        view("p", "prefill", queued_tokens=100_000), *(view(f"d{n}", num_running=n % 16) for n in range(100))
    )
    decision = decide(explainer, ranks, query())
    assert len(decision.candidates) == 2
    [explanation] = explainer.explain("request")
    shown = [candidate.incarnation for candidate in explanation.candidates]
    assert shown[:2] == [decision.prefill, decision.decode]
    assert sorted(shown) == sorted(rank.incarnation for rank in ranks.ranks)
    by_name = {candidate.incarnation: candidate for candidate in cost.candidates(ranks, query(), PARAMETERS)}
    assert all(candidate == by_name[candidate.incarnation] for candidate in explanation.candidates)


def test_snapshots_are_kept_of_the_latest_decisions_only_and_counted_by_their_ranks():
    explainer = Explainer(PARAMETERS, capacity=6, most_views=10)
    ranks = snapshot(*(view(f"d{number}") for number in range(4)))
    for number in range(9):
        decide(explainer, ranks, replace(query(), request_id=f"r{number}"))
        assert explainer.num_views <= 10
    for number in range(3, 9):
        [explanation] = explainer.explain(f"r{number}")
        assert explanation.candidates[0].incarnation == explanation.decision.decode
        has_snapshot = number >= 7
        assert len(explanation.candidates) == (4 if has_snapshot else 1)
        assert bool(explanation.alternatives) == has_snapshot
    # a small snapshot that is forgotten with its decision gives its room back
    for number in range(20):
        decide(explainer, snapshot(view("a")), replace(query(), request_id=f"s{number}"))
    assert explainer.num_views == len(explainer) == 6
