"""The circuit breaker: when it opens, and how it closes again."""

from router.breaker import Breaker, BreakerState
from tests.support.clock import ManualClock


def test_it_opens_after_failures_in_a_row_and_one_attempt_decides():
    clock = ManualClock()
    breaker = Breaker(clock, most_failures=3, open_s=2.0)
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.allows()
        breaker.failed()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allows()
    clock.advance(2.0)
    assert breaker.allows()
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allows(), "one at a time"
    breaker.failed()
    assert breaker.state is BreakerState.OPEN
    clock.advance(1.9)
    assert not breaker.allows()
    clock.advance(0.1)
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert breaker.allows() and breaker.allows()


def test_an_attempt_of_which_nothing_is_heard_does_not_keep_it_open():
    clock = ManualClock()
    breaker = Breaker(clock, most_failures=1, open_s=2.0)
    breaker.failed()
    clock.advance(2.0)
    assert breaker.allows()
    clock.advance(2.0)
    assert breaker.allows()
