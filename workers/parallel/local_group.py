"""The group of one rank: the same interface, with nobody to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from baleen.clock import Clock
from baleen.errors import EpochEnded
from baleen.ids import Epoch, Incarnation
from workers.parallel.group import Agreement, Health
from workers.parallel.local import LocalExchange
from workers.parallel.lockstep import DecodeSize
from workers.parallel.progress import Progress


class LocalGroup:
    """A `Group` with world_size 1."""

    def __init__(self, epoch: Epoch, incarnation: Incarnation, on_end: Callable[[str], None], clock: Clock) -> None:
        self.rank = 0
        self.world_size = 1
        self._epoch = epoch
        self._incarnation = incarnation
        self._on_end = on_end
        self._clock = clock
        self._progress = Progress(clock)
        self._changed = threading.Condition()
        self._notified = False
        self._cause: str | None = None
        self._next_step = 0

    def exchange(
        self, step: int, num_tokens: int, *, draining: bool = False, decode: DecodeSize | None = None
    ) -> Agreement:
        """See `Group.exchange`."""
        assert step == self._next_step, f"step {step} after step {self._next_step - 1}"
        self._next_step += 1
        self._progress.enter("exchange", step)
        self.check()
        return Agreement(step, (num_tokens,), (draining,), decode)

    def wait_for_work(self, timeout_s: float) -> bool:
        """See `Group.wait_for_work`."""
        self._progress.enter("idle")
        with self._changed:
            self._changed.wait_for(lambda: self._notified or self._cause is not None, timeout_s)
            notified, self._notified = self._notified, False
        self._progress.enter("idle")
        self.check()
        return notified

    def notify(self) -> None:
        """See `Group.notify`."""
        with self._changed:
            self._notified = True
            self._changed.notify()

    def await_all(self, milestone: str, timeout_s: float) -> None:
        """See `Group.await_all`; the one rank is here."""
        self.check()

    def report(self, phase: str) -> None:
        """See `Group.report`."""
        self._progress.enter(phase)

    def check(self) -> None:
        """See `Group.check`."""
        if self._cause is not None:
            raise EpochEnded(self._cause)

    def health(self) -> Health:
        """See `Group.health`."""
        mark = self._progress.mark
        seconds = self._clock.now() - mark.since
        return Health(0, self._epoch, self._incarnation, mark.step, mark.phase, seconds, self._cause, ())

    def expert_exchange(self, num_experts: int) -> LocalExchange:
        """See `Group.expert_exchange`."""
        return LocalExchange(num_experts)

    def end(self, cause: str) -> None:
        """See `Group.end`."""
        with self._changed:
            if self._cause is not None:
                return
            self._cause = cause
            self._changed.notify()
        self._on_end(cause)

    def close(self) -> None:
        """See `Group.close`."""
        self._progress.enter("closed")
