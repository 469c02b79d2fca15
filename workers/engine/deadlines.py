"""The earliest of many deadlines, so that nobody looks at all of them in every step."""

from __future__ import annotations


class Deadlines:
    """Times in seconds of the rank's clock. One that is not needed any more may stay: then a look finds nothing."""

    def __init__(self) -> None:
        self._next: float | None = None

    def note(self, deadline: float | None) -> None:
        """Somebody has this one, or none."""
        if deadline is not None and (self._next is None or deadline < self._next):
            self._next = deadline

    def take_due(self, now: float) -> bool:
        """Whether one has passed; then those that have not are to be noted again."""
        if self._next is None or now < self._next:
            return False
        self._next = None
        return True
