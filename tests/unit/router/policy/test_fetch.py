"""When a rank that computes is told to fetch a prefix first: what it saves, from whom, and who then computes."""

from dataclasses import replace

import pytest
from hypothesis import assume, given

from baleen.errors import BaleenError
from router.policy.cost import candidates, choose
from router.policy.registry import POLICIES
from router.policy.snapshot import Parameters
from tests.support.policy_cases import cases
from tests.support.ranks import PARAMETERS, query, snapshot, view

# 64 ms to compute a block of 64 tokens, 10 ms to move one
SLOW_NETWORK = Parameters(block_bytes=1_000_000, transfer_bytes_per_s=1e8, handoff_s=0.1, short_tail_tokens=0)


def busy_holder(**changes):
    """A prefill rank with a long queue, and an idle one."""
    return snapshot(view("holder", "prefill", queued_tokens=60_000, **changes), view("idle", "prefill"), view("d"))


def test_an_idle_rank_fetches_what_a_busy_one_holds():
    decision = choose(busy_holder(), query(1000, holder=12, idle=2), SLOW_NETWORK)
    assert (decision.prefill, decision.decode) == ("idle", "d")
    fetch = decision.fetch
    assert (fetch.holder, fetch.num_blocks, fetch.num_fetched) == ("holder", 12, 10)
    assert fetch.compute_s == pytest.approx(0.640)
    assert fetch.gain_s == pytest.approx(0.640 - 0.1 - 0.1)
    assert "fetches 10 blocks from holder, to save 0.440 s" in decision.reason
    source = decision.candidates[0]
    assert source.terms.fetch_s == pytest.approx(-0.440) and source.terms.credit_s == pytest.approx(-0.128)
    assert source.first_token_s == pytest.approx(0.960 - 0.128 - 0.440)


def test_few_blocks_are_computed_rather_than_fetched():
    for num_blocks, fetches in ((1, False), (2, True)):
        decision = choose(busy_holder(), query(1000, holder=num_blocks), SLOW_NETWORK)
        assert decision.prefill == "idle" and (decision.fetch is not None) is fetches


def test_a_slow_network_is_not_used():
    question = query(1000, holder=15)
    assert choose(busy_holder(), question, SLOW_NETWORK).fetch is not None
    slower = replace(SLOW_NETWORK, transfer_bytes_per_s=1e7)
    assert choose(busy_holder(), question, slower).fetch is None
    measured = replace(question, transfer_bytes_per_s=1e7)
    assert choose(busy_holder(), measured, SLOW_NETWORK).fetch is None, "what was measured counts"


def test_who_drains_or_failed_lately_is_not_asked():
    question = query(1000, holder=15)
    assert choose(busy_holder(draining=True), question, SLOW_NETWORK).fetch is None
    barred = replace(question, no_fetch=frozenset({"holder"}))
    assert choose(busy_holder(), barred, SLOW_NETWORK).fetch is None
    others = replace(barred, cached_blocks={"holder": 15, "d": 10})
    assert choose(busy_holder(), others, SLOW_NETWORK).fetch.holder == "d", "then the next best"


def test_a_decode_rank_fetches_for_itself_when_only_a_short_tail_is_left():
    ranks = snapshot(view("p", "prefill"), view("other", num_running=16), view("d"))
    parameters = replace(SLOW_NETWORK, short_tail_tokens=256)
    decision = choose(ranks, query(1000, other=15), parameters)
    assert (decision.prefill, decision.decode) == (None, "d")
    assert (decision.fetch.holder, decision.fetch.num_fetched) == ("other", 15)
    decision = choose(ranks, query(2000, other=15), parameters)
    assert decision.prefill == "p" and decision.fetch.num_fetched == 15, "with more to compute, the prefill rank does"


def test_the_holder_itself_is_best_while_it_is_idle():
    ranks = snapshot(view("a", "mixed"), view("b", "mixed"))
    decision = choose(ranks, query(1000, a=15), SLOW_NETWORK)
    assert decision.decode == "a" and decision.fetch is None


@pytest.mark.parametrize("name", ["least_loaded", "round_robin"])
@given(case=cases())
def test_the_other_policies_do_not_fetch(name, case):
    try:
        decision = POLICIES[name](*case, PARAMETERS)
    except BaleenError:
        return
    assert decision.fetch is None and all(candidate.terms.fetch_s == 0 for candidate in decision.candidates)


@given(case=cases())
def test_a_fetch_is_possible_and_saves_time(case):
    ranks, question = case
    try:
        decision = choose(ranks, question, PARAMETERS)
    except BaleenError:
        return
    fetch = decision.fetch
    assume(fetch is not None)
    by_name = {rank.incarnation: rank for rank in ranks.ranks}
    holder, computes = by_name[fetch.holder], by_name[decision.prefill or decision.decode]
    assert holder is not computes and not holder.draining and fetch.holder not in question.no_fetch
    assert fetch.num_blocks == question.held(holder) <= question.shareable
    assert fetch.num_fetched == fetch.num_blocks - question.held(computes) > 0
    assert 0 < fetch.gain_s < fetch.compute_s


@given(case=cases())
def test_the_choice_to_fetch_makes_nobody_dearer(case):
    ranks, question = case
    try:
        costs = [
            {
                (candidate.half == "prefill", candidate.incarnation): candidate.terms.total_s
                for candidate in candidates(ranks, question, Parameters(fetch=fetch))
                if candidate.half == "prefill" or candidate.alone
            }
            for fetch in (False, True)
        ]
    except BaleenError:
        return
    for key in costs[0].keys() & costs[1].keys():
        assert 0 <= costs[1][key] <= costs[0][key] + 1e-9
