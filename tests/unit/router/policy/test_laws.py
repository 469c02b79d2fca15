"""What must hold for every policy, on any ranks."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from baleen.blocks import blocks_for
from baleen.errors import BaleenError, CapacityError, NotReady
from router.policy.cost import candidates
from router.policy.registry import POLICIES
from router.policy.snapshot import Snapshot
from tests.support.policy_cases import cases
from tests.support.policy_reference import can_decode, can_prefill
from tests.support.ranks import PARAMETERS, query, snapshot, view


def decide(name, ranks, question):
    try:
        return POLICIES[name](ranks, question, PARAMETERS)
    except BaleenError as error:
        return type(error), str(error)


every_policy = pytest.mark.parametrize("name", POLICIES)


@every_policy
@given(case=cases())
def test_a_draining_or_full_rank_is_taken_only_if_there_is_no_other(name, case):
    ranks, question = case
    by_name = {rank.incarnation: rank for rank in ranks.ranks}
    alive = [rank for rank in ranks.ranks if rank.role != "prefill" and not rank.draining]
    try:
        decision = POLICIES[name](ranks, question, PARAMETERS)
    except NotReady:
        assert not alive
        return
    except CapacityError:
        assert alive and all(rank.total_blocks * 64 <= question.num_prompt_tokens for rank in alive)
        return
    decode = by_name[decision.decode]
    assert decode.role != "prefill" and not decode.draining
    fitting = [rank for rank in alive if blocks_for(question.num_prompt_tokens + 1) <= rank.total_blocks]
    assert decode in fitting
    if any(can_decode(rank, question) for rank in fitting):
        assert can_decode(decode, question)
    assert decision.has_room <= can_decode(decode, question)
    if decision.prefill is None:
        return
    prefill = by_name[decision.prefill]
    assert prefill.role == "prefill" and not prefill.draining and decode.role == "decode"
    rivals = [rank for rank in ranks.ranks if rank.role == "prefill" and not rank.draining]
    if any(can_prefill(rank, question) for rank in rivals if question.shareable <= rank.total_blocks):
        assert can_prefill(prefill, question)
    assert decision.has_room == (can_decode(decode, question) and can_prefill(prefill, question))


@every_policy
@given(case=cases(), data=st.data())
def test_the_order_of_ranks_does_not_matter(name, case, data):
    ranks, question = case
    shuffled = Snapshot(tuple(data.draw(st.permutations(ranks.ranks))))
    first, second = decide(name, ranks, question), decide(name, shuffled, question)
    if isinstance(first, tuple):
        assert first == second
    else:
        assert (first.prefill, first.decode, first.reason) == (second.prefill, second.decode, second.reason)


@given(case=cases(), data=st.data())
def test_more_cached_blocks_never_lose_a_rank_the_request(case, data):
    ranks, question = case
    decision = decide("cost", ranks, question)
    assume(not isinstance(decision, tuple))
    for winner, half in ((decision.decode, "decode"), (decision.prefill, "prefill")):
        if winner is None:
            continue
        held = question.cached_blocks.get(winner, 0)
        more = {**question.cached_blocks, winner: held + data.draw(st.integers(1, 60))}
        again = decide("cost", ranks, replace(question, cached_blocks=more))
        if half == "decode":
            assert again.decode == winner
        elif again.prefill is not None:
            assert again.prefill == winner


@given(case=cases(), data=st.data())
def test_cost_falls_with_cached_blocks_and_rises_with_the_queue(case, data):
    ranks, question = case
    rank = data.draw(st.sampled_from(ranks.ranks))
    more = {**question.cached_blocks, rank.incarnation: question.cached_blocks.get(rank.incarnation, 0) + 1}
    busier = Snapshot(tuple(replace(r, queued_tokens=r.queued_tokens + 1000) if r is rank else r for r in ranks.ranks))
    before = total_of(rank, ranks, question)
    richer = total_of(rank, ranks, replace(question, cached_blocks=more))
    slower = total_of(rank, busier, question)
    assume(before is not None and richer is not None and slower is not None)
    assert richer <= before + 1e-9
    assert slower > before


def total_of(rank, ranks, question):
    """The rank's own part of the cost; None where it is no candidate, or the way to serve it differs."""
    try:
        found = candidates(ranks, question, PARAMETERS)
    except BaleenError:
        return None
    for candidate in found:
        if candidate.incarnation == rank.incarnation and (candidate.alone or candidate.half == "prefill"):
            return candidate.terms.total_s
    return None


@given(case=cases())
def test_terms_are_finite_and_the_predicted_time_is_positive(case):
    decision = decide("cost", *case)
    assume(not isinstance(decision, tuple))
    assert 0 < decision.first_token_s < float("inf")
    for candidate in candidates(*case, PARAMETERS):
        assert 0 <= candidate.terms.total_s < float("inf")
        assert candidate.terms.credit_s <= 0


@pytest.mark.parametrize("name", ["cost", "least_loaded"])
@given(seed=st.integers(0, 2**64))
def test_the_seed_alone_decides_near_ties(name, seed):
    ranks = snapshot(*(view(f"d{number}") for number in range(5)))
    first = POLICIES[name](ranks, query(1000, seed=seed), PARAMETERS)
    assert POLICIES[name](ranks, query(1000, seed=seed, turn=7), PARAMETERS).decode == first.decode
    # a rank that was not chosen leaves: the choice stands
    fewer = Snapshot(tuple(rank for rank in ranks.ranks if rank.incarnation in (first.decode, "d0", "d1")))
    assert POLICIES[name](fewer, query(1000, seed=seed), PARAMETERS).decode == first.decode


def test_round_robin_takes_each_in_turn():
    ranks = snapshot(view("p0", "prefill"), view("p1", "prefill"), view("d0"), view("d1"), view("d2"))
    chosen = [POLICIES["round_robin"](ranks, query(1000, turn=turn), PARAMETERS) for turn in range(6)]
    assert [decision.decode for decision in chosen] == ["d0", "d1", "d2"] * 2
    assert [decision.prefill for decision in chosen] == ["p0", "p1"] * 3


def test_least_loaded_goes_by_queue_places_and_blocks():
    prefill = [
        view("p0", "prefill", queued_tokens=100, prefill_tokens_per_s=1e4),
        view("p1", "prefill", queued_tokens=50),
    ]
    decode = [view("d0", num_running=4), view("d1", free_blocks=600), view("d2", num_waiting=1, free_blocks=900)]
    decision = POLICIES["least_loaded"](snapshot(*prefill, *decode), query(1000, d0=15), PARAMETERS)
    assert (decision.prefill, decision.decode) == ("p0", "d2")
