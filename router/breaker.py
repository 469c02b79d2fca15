"""Whether a failing service is asked again: after some failures in a row not at all for a while, then once."""

from __future__ import annotations

from enum import Enum

from baleen.clock import Clock


class BreakerState(Enum):
    """Closed: asked each time. Open: not asked. Half-open: one caller tries."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after `most_failures` in a row, for `open_s` seconds; then one attempt decides."""

    def __init__(self, clock: Clock, *, most_failures: int = 3, open_s: float = 1.0) -> None:
        assert most_failures >= 1 and open_s > 0
        self._clock = clock
        self._most_failures = most_failures
        self._open_s = open_s
        self._failures = 0
        self._state = BreakerState.CLOSED
        self._retry_at = 0.0

    @property
    def state(self) -> BreakerState:
        """The state now, for metrics."""
        return self._state

    def allows(self) -> bool:
        """Whether to ask now. Who is allowed must call `succeeded` or `failed`."""
        if self._state is BreakerState.CLOSED:
            return True
        # an attempt of which nothing was heard, as when its caller was cancelled, counts as failed after the same time
        if self._clock.now() < self._retry_at:
            return False
        self._state = BreakerState.HALF_OPEN
        self._retry_at = self._clock.now() + self._open_s
        return True

    def succeeded(self) -> None:
        """The service answered."""
        self._failures = 0
        self._state = BreakerState.CLOSED

    def failed(self) -> None:
        """The service did not answer in time, or wrongly."""
        self._failures += 1
        if self._state is BreakerState.HALF_OPEN or self._failures >= self._most_failures:
            self._state = BreakerState.OPEN
            self._retry_at = self._clock.now() + self._open_s
