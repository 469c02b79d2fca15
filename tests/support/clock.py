"""Time that moves only when a test says so."""

from __future__ import annotations


class ManualClock:
    """A Clock whose seconds are set by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Seconds since an arbitrary origin."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0
        self._now += seconds
