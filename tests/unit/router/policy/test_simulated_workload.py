"""The policies side by side on the workload of benchmarks/routing.py."""

import pytest

from benchmarks.routing import LAYOUTS, simulate, workload


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cost_policy_hits_more_and_answers_sooner_than_the_others(layout):
    turns = workload(conversations=300, per_second=12.0, seed=3)
    cost, loaded, turned = (
        simulate(LAYOUTS[layout], policy, turns) for policy in ("cost", "least_loaded", "round_robin")
    )
    assert cost["requests"] == loaded["requests"] == turned["requests"] > 500
    for other in (loaded, turned):
        assert cost["hit_rate"] > other["hit_rate"] + 0.1
        assert cost["first_token_ms_mean"] < 0.7 * other["first_token_ms_mean"]
    most, equal = cost["busiest"]
    assert most < 2 * equal, "under load, a popular prefix does not draw all to its holder"


def test_the_same_seed_is_the_same_simulation():
    turns = workload(conversations=30, per_second=4.0, seed=3)
    layout = LAYOUTS["8 mixed"]
    assert simulate(layout, "cost", turns) == simulate(layout, "cost", turns)
