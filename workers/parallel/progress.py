"""What this rank's main thread is doing, written by it and read by the control thread. No locks: one writer."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.clock import Clock


@dataclass(frozen=True, slots=True)
class Mark:
    """The main thread entered `phase` of `step` at `since` (seconds of the clock)."""

    step: int
    phase: str
    since: float


class Progress:
    """The latest mark, and whether the main thread waits for other ranks right now.

    collectives: how many collectives the main thread has entered. All ranks enter the same ones in the same order,
    so the rank with a lower number than the others is the one that they wait for.
    """

    __slots__ = ("_clock", "collectives", "mark", "waiting_since")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.mark = Mark(-1, "joining", clock.now())
        self.collectives = 0
        self.waiting_since: float | None = None

    def enter(self, phase: str, step: int | None = None) -> None:
        """The main thread enters `phase`, of `step` if that changes too."""
        self.mark = Mark(self.mark.step if step is None else step, phase, self._clock.now())

    def enter_collective(self) -> None:
        """One more collective begins."""
        self.collectives += 1
        self.waiting_since = self._clock.now()

    def wait_begins(self, num_replayed: int = 0) -> None:
        """The main thread waits for a collective that it entered before, or for so many that it has replayed."""
        self.collectives += num_replayed
        self.waiting_since = self._clock.now()

    def leave_collective(self) -> None:
        """The main thread came out of a collective, or out of waiting for one."""
        self.waiting_since = None
