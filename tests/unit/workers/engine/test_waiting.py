"""The waiting queue: order, and siblings that are held back."""

from tests.support.engine import make_request, make_requests
from workers.engine.request import Request
from workers.engine.waiting import WaitingRequests


def ordered(requests: list[Request], start: int = 0) -> list[Request]:
    for place, request in enumerate(requests):
        request.order = (float(start + place), start + place)
    return requests


def test_the_first_in_order_is_next() -> None:
    waiting = WaitingRequests()
    first, second = ordered([make_request("a", [1]), make_request("b", [1, 2])])
    waiting.add(second)
    waiting.add(first)
    assert waiting.first() is first and len(waiting) == 2 and waiting.num_tokens == 3
    waiting.remove(first)
    assert waiting.first() is second and waiting.num_tokens == 2


def test_held_back_siblings_count_but_do_not_queue() -> None:
    waiting = WaitingRequests()
    lead, *siblings = ordered(make_requests("a", [1, 2], n=3))
    (other,) = ordered([make_request("b", [1])], start=9)
    waiting.add(lead)
    waiting.add(other)
    for sibling in siblings:
        waiting.hold_back(sibling)
    assert len(waiting) == 4 and waiting.num_tokens == 7
    assert set(waiting) == {lead, other, *siblings}
    waiting.remove(lead)
    assert waiting.first() is other
    assert waiting.is_held_back(siblings[0]) and not waiting.is_held_back(other)
    waiting.admit_siblings(lead.id)
    assert waiting.first() is siblings[0] and not waiting.is_held_back(siblings[0])
    assert len(waiting) == 3 and waiting.num_tokens == 5


def test_the_next_sibling_leads_and_held_back_ones_can_leave() -> None:
    waiting = WaitingRequests()
    _, *siblings = ordered(make_requests("a", [1, 2], n=4))
    for sibling in siblings:
        waiting.hold_back(sibling)
    waiting.promote(siblings[0].id)
    assert waiting.first() is siblings[0] and waiting.is_held_back(siblings[1])
    waiting.remove(siblings[1])
    waiting.remove(siblings[2])
    waiting.remove(siblings[0])
    assert len(waiting) == 0 and waiting.num_tokens == 0 and waiting.first() is None
    waiting.promote(siblings[0].id)
    waiting.admit_siblings(siblings[0].id)
    assert waiting.first() is None
