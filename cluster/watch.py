"""What `baleen up` does beside its cluster: waits until it is up, says what changes, starts its Redis again.

It asks Serve, and keeps nothing that Serve knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from baleen.errors import BaleenError, HeadLost
from cluster import head_calls
from cluster.service import ServiceState

HEAD_LOST = "Ray's head gives no answer: what runs goes on, but nothing that is lost comes back"

PLACE_TIMEOUT_S = 60.0
"""Longest time for placing actors, beyond what the ranks may take."""

POLL_S = 0.1
WATCH_S = 1.0


class Restartable(Protocol):
    """The cluster's own Redis."""

    def restart_if_ended(self) -> bool:
        """Start it again if it has ended; returns whether that was so. Raises BaleenError if it does not start."""


class Watch:
    """Over the services of one cluster. Every pause is bounded, so that a signal is taken soon."""

    def __init__(
        self,
        states: Callable[[], Sequence[ServiceState]],
        *,
        say: Callable[[str], None],
        tell: Callable[[Sequence[ServiceState]], None],
        redis: Restartable | None = None,
        head_answers: Callable[[], bool] = lambda: True,
        head_address: str = "",
        notice: Callable[[str], None] = lambda text: None,
        pause: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """say: for people, of changes. tell: gets the states after each look.

        head_answers: whether Serve can be asked; head_address: where, for people. notice: gets what is wrong with the
        cluster as a whole, or nothing.
        """
        self._states = states
        self._say = say
        self._tell = tell
        self._redis = redis
        self._head_answers = head_answers
        self._head_address = head_address
        self._notice = notice
        self._head_lost = False
        self._pause = pause
        self._now = now
        self._is_up = False
        self._last: Sequence[ServiceState] = ()
        self._known: dict[str, ServiceState] = {}
        self._redis_failed = False

    def until_up(self, timeout_s: float, names: Collection[str] | None = None) -> None:
        """Wait until these services, or all, are up. Raises the reason as soon as one is known never to be.

        HeadLost if Ray's head is silent for too long before all has been up once.
        """
        deadline = self._now() + timeout_s
        while waiting := [state for state in self._look() if not state.up and (names is None or state.name in names)]:
            for state in waiting:
                if state.final_error is not None:
                    raise type(state.final_error)(f"{state.name} does not start: {state.final_error}")
                if state.given_up:
                    raise BaleenError(f"{state.name} does not start: {state.last_words}")
            if self._now() > deadline:
                raise BaleenError(f"{waiting[0].name} is not up in time: {waiting[0].state} {waiting[0].message}")
            self._pause(POLL_S)

    def until(self, done: Callable[[Mapping[str, ServiceState]], bool], timeout_s: float, what: str) -> None:
        """Wait until `done`, of the states by name. Raises BaleenError that names `what` when that takes too long."""
        deadline = self._now() + timeout_s
        while not done({state.name: state for state in self._look()}):
            if self._now() > deadline:
                raise BaleenError(f"{what} is still there after {timeout_s:g} s")
            self._pause(POLL_S)

    def forever(self, rest: Callable[[float], None] | None = None) -> None:
        """Say what changes, until a signal raises. rest: what is done between two looks, for about that time."""
        self._is_up = True
        rest = rest or self._pause
        while True:
            states = self._look()
            self._known = {state.name: self._known[state.name] for state in states if state.name in self._known}
            for state in states:
                before = self._known.get(state.name)
                if before is not None and (before.up, before.wanted) != (state.up, state.wanted):
                    self._say(
                        f"{state.name}: all {state.wanted} up again"
                        if state.up
                        else f"{state.name}: {state.running} of {state.wanted} up; {state.message or state.state}"
                    )
                self._known[state.name] = state
            rest(WATCH_S)

    def _look(self) -> Sequence[ServiceState]:
        self._tend_redis()
        self._head_is(lost=not self._head_answers())
        if not self._is_up:
            self._await_head()
        if not self._head_lost:
            try:
                self._last = self._states()
            except HeadLost:
                if not self._is_up:
                    raise
                # between the two questions
                self._head_is(lost=True)
            else:
                self._tell(self._last)
        return self._last

    def _await_head(self) -> None:
        """Without it nothing comes up, but on a busy machine it may be silent for a while."""
        deadline = self._now() + head_calls.HEAD_PATIENCE_S
        while self._head_lost:
            if self._now() > deadline:
                raise head_calls.lost(self._head_address)
            self._pause(POLL_S)
            self._head_is(lost=not self._head_answers())

    def _head_is(self, *, lost: bool) -> None:
        if lost != self._head_lost:
            self._head_lost = lost
            self._notice(HEAD_LOST if lost else "")
            self._say(HEAD_LOST if lost else "Ray's head is back")

    def _tend_redis(self) -> None:
        if self._redis is None:
            return
        try:
            restarted = self._redis.restart_if_ended()
        except BaleenError as error:
            if not self._redis_failed:
                self._say(f"redis has ended and does not start again: {error}")
            self._redis_failed = True
            return
        if restarted:
            self._say("redis had ended; started again, empty: ranks announce their blocks anew")
        self._redis_failed = False
