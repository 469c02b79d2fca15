"""Order, admission and fit, as plain functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.errors import CapacityError, InvalidRequest
from tests.support.engine import make_request
from workers.engine.policy import OrderedRequests, admission_reserve, chunk_tokens, place_in_order, require_fit

AGING_S = 10.0
arrivals = st.tuples(st.integers(-5, 5), st.integers(0, 1000))


def place(priority: int, arrival: float, sequence: int = 0) -> tuple[float, int]:
    return place_in_order(priority=priority, arrival_s=arrival, sequence=sequence, aging_s=AGING_S)


@given(arrivals, arrivals, st.integers(0, 1000))
def test_the_fixed_place_is_the_order_by_aged_priority_at_any_time(
    one: tuple[int, int], other: tuple[int, int], later: int
) -> None:
    now = max(one[1], other[1]) + later
    aged = [priority * AGING_S - (now - arrival) for priority, arrival in (one, other)]
    assert (aged[0] < aged[1]) == (place(*one)[0] < place(*other)[0])


def test_first_come_first_served_within_a_priority() -> None:
    assert place(3, 5.0, 1) < place(3, 5.0, 2) < place(3, 5.1, 0)


def test_a_lower_priority_is_overtaken_for_one_aging_time_per_level() -> None:
    assert place(0, 119.9, 1) < place(2, 100.0, 0) < place(0, 120.0, 1)


def test_the_reserve_is_for_running_requests() -> None:
    assert [admission_reserve(1000, running) for running in (0, 3, 64)] == [0, 3, 10]
    assert admission_reserve(4, 2) == 1


def test_chunks_obey_the_smallest_limit() -> None:
    assert chunk_tokens(100, budget=50, max_chunk=70) == 50
    assert chunk_tokens(100, budget=500, max_chunk=70) == 70
    assert chunk_tokens(10, budget=50, max_chunk=70) == 10


def test_the_limits_of_a_request_are_exact() -> None:
    request = make_request("r", [1] * 60, max_tokens=5)
    # 65 tokens, of which the last is never computed: one block
    require_fit(request, max_context=65, num_blocks=1)
    with pytest.raises(InvalidRequest, match=r"prompt of 60 .* max_tokens of 5 .* limit of 64") as caught:
        require_fit(request, max_context=64, num_blocks=1)
    assert caught.value.field == "max_tokens"
    with pytest.raises(CapacityError, match="need 2 cache blocks, the whole pool has 1"):
        require_fit(make_request("r", [1] * 60, max_tokens=6), max_context=66, num_blocks=1)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=40))
def test_ordered_requests_stay_sorted(changes: list[tuple[int, bool]]) -> None:
    ordered = OrderedRequests()
    expected = []
    for sequence, (value, remove) in enumerate(changes):
        if remove and expected:
            request = expected.pop(value % len(expected))
            assert request in ordered
            ordered.remove(request)
            assert request not in ordered
        else:
            request = make_request("r", [1])
            request.order = (float(value), sequence)
            ordered.add(request)
            expected.append(request)
        expected.sort(key=lambda request: request.order)
        assert list(ordered) == expected and len(ordered) == len(expected)
        if expected:
            assert ordered[0] is expected[0] and ordered[-1] is expected[-1]
