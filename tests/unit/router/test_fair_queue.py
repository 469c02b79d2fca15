"""The fair queue: shares converge to the weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import fair_queue
from router.fair_queue import FairQueue


def anything(item):
    return True


def test_one_tenants_requests_come_in_order():
    queue = FairQueue()
    for number in range(5):
        queue.push(number, tenant="a", cost=5 - number)
    assert [queue.take(anything).item for _ in range(5)] == [0, 1, 2, 3, 4]
    assert queue.take(anything) is None
    assert len(queue) == 0


@given(
    weights=st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2),
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.randoms(use_true_random=False),
)
def test_shares_of_backlogged_tenants_converge_to_their_weights(weights, costs, seed):
    queue = FairQueue(weights)
    served = dict.fromkeys(weights, 0)
    for tenant in weights:
        queue.push(None, tenant=tenant, cost=seed.choice(costs))
    for _ in range(600):
        entry = queue.take(anything)
        served[entry.tenant] += entry.cost
        queue.push(None, tenant=entry.tenant, cost=seed.choice(costs))
        # at every moment nobody is further ahead than one request of the largest cost, of both
        virtual = [served[tenant] / weight for tenant, weight in weights.items()]
        assert max(virtual) - min(virtual) <= 2 * max(costs) / min(weights.values()) + 1e-6


def test_an_idle_tenant_saves_nothing_up_and_pays_for_nothing():
    queue = FairQueue()
    for _ in range(100):
        queue.push("busy", tenant="busy", cost=10)
    for _ in range(50):
        queue.take(anything)
    for _ in range(50):
        queue.push("late", tenant="late", cost=10)
    order = [queue.take(anything).item for _ in range(20)]
    assert order.count("late") == 10, "half, from now on"


def test_leaving_the_queue_and_coming_back_does_not_wash_off_what_was_taken():
    queue = FairQueue()
    for _ in range(20):
        queue.push("other", tenant="other", cost=10)
    taken = 0
    for _ in range(20):
        queue.push("hopper", tenant="hopper", cost=10)
        taken += queue.take(anything).item == "hopper"
    assert taken == 10


def test_what_does_not_fit_is_passed_over_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(fair_queue, "MOST_BYPASSES", 3)
    queue = FairQueue()
    queue.push("large", tenant="a", cost=1)
    for number in range(10):
        queue.push(number, tenant="a", cost=1)
    small = [queue.take(lambda item: item != "large") for _ in range(4)]
    assert [entry.item for entry in small[:3]] == [0, 1, 2]
    assert small[3] is None, "the large one is next now"
    queue.push("other", tenant="b", cost=100)
    assert queue.take(lambda item: item != "large").item == "other", "whose turn it is, does not overtake"
    assert queue.take(anything).item == "large"


def test_a_look_is_bounded():
    queue = FairQueue()
    for tenant in range(100):
        for _ in range(10):
            queue.push(tenant, tenant=str(tenant), cost=1)
    asked = []
    assert queue.take(asked.append) is None
    assert len(asked) == fair_queue.MOST_LOOKED_AT
    assert asked.count(0) == fair_queue.LOOKAHEAD


def test_a_discarded_request_costs_its_tenant_nothing():
    queue = FairQueue()
    entry = queue.push("dear", tenant="a", cost=1000)
    queue.push("a", tenant="a", cost=1)
    queue.push("b", tenant="b", cost=1)
    queue.discard(entry)
    queue.discard(entry)
    assert len(queue) == 2
    assert [queue.take(anything).item for _ in range(2)] == ["a", "b"]


def test_cost_ahead_is_what_is_served_before():
    queue = FairQueue({"heavy": 2.0})
    assert queue.cost_ahead("a", 100) == 0
    for _ in range(10):
        queue.push("b", tenant="b", cost=100)
    assert queue.cost_ahead("a", 100) == 100
    assert queue.cost_ahead("heavy", 100) == 50
    assert queue.cost_ahead("b", 100) == 1000
    queue.push("a", tenant="a", cost=300)
    assert queue.cost_ahead("a", 100) == 700


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(0, 3)), max_size=60))
def test_every_request_is_taken_or_discarded_once(steps):
    queue, waiting, out = FairQueue(), {}, []
    for number, (tenant, cost, action) in enumerate(steps):
        if action < 2:
            waiting[number] = queue.push(number, tenant=tenant, cost=cost)
        elif action == 2 and (entry := queue.take(anything)):
            out.append(entry.item)
            del waiting[entry.item]
        elif waiting:
            discarded = min(waiting)
            queue.discard(waiting.pop(discarded))
            out.append(discarded)
        assert len(queue) == len(waiting)
        assert {entry.item for entry in queue} == set(waiting)
    while entry := queue.take(anything):
        out.append(entry.item)
    assert len(out) == len(set(out)) == sum(action < 2 for _, _, action in steps)


def test_the_greediest_has_the_most_for_its_weight():
    queue = FairQueue({"paying": 4.0})
    for tenant, count in (("paying", 6), ("small", 1), ("greedy", 2)):
        for number in range(count):
            queue.push(number, tenant=tenant, cost=1)
    assert queue.greediest() == ("greedy", 2.0)
    assert queue.newest("greedy").item == 1
    assert queue.pressure("paying") == pytest.approx(7 / 4)
    assert queue.pressure("new") == 1.0
