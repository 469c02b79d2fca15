"""The cost policy, which calculates with arrays, beside the same policy written out rank by rank."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import CapacityError, NotReady
from router.policy.cost import candidates, choose
from router.policy.snapshot import Parameters, Snapshot
from tests.support.policy_cases import cases
from tests.support.policy_reference import reference_choice
from tests.support.ranks import PARAMETERS, query, snapshot, view

PARAMETER_SETS = (
    PARAMETERS,
    Parameters(near_tie=0.0, near_tie_s=0.0),
    Parameters(short_tail_tokens=0, near_tie=0.5, fetch=False),
)


@settings(max_examples=200)
@given(case=cases(most_ranks=14), parameters=st.sampled_from(PARAMETER_SETS))
def test_every_decision_is_the_reference_s(case, parameters):
    ranks, question = case
    expected = reference_choice(ranks, question, parameters)
    if expected is None:
        with pytest.raises((NotReady, CapacityError)):
            choose(ranks, question, parameters)
        return
    decision = choose(ranks, question, parameters)
    assert (decision.prefill, decision.decode) == (expected.prefill, expected.decode)
    assert decision.first_token_s == pytest.approx(expected.first_token_s, rel=1e-12)
    if decision.fetch is None:
        assert expected.fetched == 0
    else:
        assert decision.fetch.num_fetched == expected.fetched > 0
        assert decision.fetch.holder in expected.holders
    costs = {
        (candidate.half == "prefill", candidate.incarnation): candidate.terms.total_s
        for candidate in candidates(ranks, question, parameters)
    }
    assert costs == pytest.approx(expected.costs, rel=1e-12)


@given(case=cases(), data=st.data())
def test_a_snapshot_with_replaced_ranks_is_one_made_anew(case, data):
    ranks, question = case
    position = data.draw(st.integers(0, len(ranks.ranks) - 1))
    later = replace(ranks.ranks[position], queued_tokens=77, sent_blocks=1, draining=data.draw(st.booleans()))
    anew = Snapshot(tuple(later if place == position else rank for place, rank in enumerate(ranks.ranks)))
    assert ranks.columns.positions == anew.columns.positions
    replaced = ranks.replaced({position: later})
    assert replaced == anew
    assert (
        ranks.ranks[position].queued_tokens == ranks.columns.tokens_ahead[position] - ranks.ranks[position].sent_tokens
    )
    if reference_choice(anew, question, PARAMETERS) is not None:
        assert candidates(replaced, question, PARAMETERS) == candidates(anew, question, PARAMETERS)


@pytest.mark.slow
def test_a_thousand_ranks():
    ranks = snapshot(
        *(
            view(f"r{number}", "prefill" if number % 3 == 0 else "decode", queued_tokens=number * 37 % 1000 * 9)
            for number in range(1000)
        )
    )
    for seed in range(5):
        question = query(5000, seed=seed, r3=40, r4=70, r600=70)
        expected = reference_choice(ranks, question, PARAMETERS)
        decision = choose(ranks, question, PARAMETERS)
        assert (decision.prefill, decision.decode) == (expected.prefill, expected.decode)
