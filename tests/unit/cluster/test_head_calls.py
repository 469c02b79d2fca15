"""Calls of Ray: what they return and raise, a head that vanishes within one, signals meanwhile."""

import socket
import threading
from itertools import chain, repeat

import pytest

from baleen.errors import HeadLost
from cluster import head_calls
from cluster.head_calls import HeadCalls, listens


class Stop(Exception):
    """As a handler of a signal raises it."""


@pytest.fixture
def released(monkeypatch):
    """What a call of the test waits for, until the test is over at the latest."""
    monkeypatch.setattr(head_calls, "_LOOK_S", 0.01)
    event = threading.Event()
    yield event
    event.set()


def calls(answers):
    """Calls whose clock goes on by a second with each look at it."""
    answers = iter(answers)
    return HeadCalls("host:1", lambda: next(answers), now=iter(range(10**6)).__next__)


def test_a_call_gives_what_the_function_gives():
    call = calls([])
    assert call(sorted, [2, 1], reverse=True) == [2, 1]
    with pytest.raises(ValueError, match="invalid literal"):
        call(int, "x")
    assert not call.stuck


def test_a_call_is_given_up_when_the_head_stays_silent(released):
    call = calls(repeat(False))
    with pytest.raises(HeadLost, match=r"^Ray's head at host:1 has given no answer for 30 s$"):
        call(released.wait)
    assert call.stuck
    released.set()
    call._given_up[0].result(30)
    assert not call.stuck


def test_a_head_that_is_silent_for_a_while_is_waited_for(released):
    def looks():
        yield from chain(repeat(False, 29), [True], repeat(False, 29))
        released.set()
        yield from repeat(True)

    assert calls(looks())(released.wait) is True


def test_after_a_signal_the_call_ends_first_and_a_second_one_is_taken_at_once(released):
    def looks(times):
        for _ in range(times):
            yield "signal"
        released.set()
        yield from repeat(True)

    def call(times):
        answers = looks(times)

        def answer():
            if (found := next(answers)) == "signal":
                raise Stop
            return found

        HeadCalls("host:1", answer)(lambda: released.wait() and ended.append(True))

    ended = []
    with pytest.raises(Stop):
        call(1)
    assert ended == [True]
    released.clear()
    with pytest.raises(Stop):
        call(2)
    assert ended == [True]


def test_who_listens_is_known_and_what_is_no_address_is_taken_to_be_well():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert listens(address)
    assert not listens(address)
    assert listens("auto")
