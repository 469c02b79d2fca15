"""A group of one rank whose every move a test can see and steer."""

from __future__ import annotations

from collections.abc import Callable

from baleen.errors import EpochEnded
from workers.parallel.group import Agreement
from workers.parallel.lockstep import DecodeSize


class FakeGroup:
    """Answers as a real group would, and writes down what it was asked.

    peer_tokens, peer_draining: what the other rank, if world_size is 2, brings to the next exchanges. on_wait: called
    when the loop sleeps; it returns whether something woke it. agreed: size of a decode step that the ranks agree on.
    """

    def __init__(self, *, world_size: int = 1, journal: list[str] | None = None) -> None:
        self.rank = 0
        self.world_size = world_size
        self.peer_tokens: list[int] = []
        self.peer_draining = False
        self.ended: str | None = None
        self.suspended = False
        self.on_wait: Callable[[float], bool] = lambda timeout_s: True
        self.journal = journal if journal is not None else []
        self.steps: list[int] = []
        self.said: list[DecodeSize | None] = []
        self.agreed: DecodeSize | None = None

    def exchange(
        self, step: int, num_tokens: int, *, draining: bool = False, decode: DecodeSize | None = None
    ) -> Agreement:
        self._require_alive()
        self.steps.append(step)
        self.journal.append("agree")
        self.said.append(decode)
        tokens, flags = (num_tokens,), (draining,)
        if self.world_size == 2:
            peer = self.peer_tokens.pop(0) if self.peer_tokens else 0
            tokens, flags = (num_tokens, peer), (draining, self.peer_draining)
        return Agreement(step, tokens, flags, self.agreed)

    def wait_for_work(self, timeout_s: float) -> bool:
        self._require_alive()
        self.journal.append("wait")
        return self.on_wait(timeout_s)

    def report(self, phase: str) -> None:
        self.journal.append(f"phase {phase}")

    def check(self) -> None:
        self.journal.append("check")
        self._require_alive()
        if self.suspended:
            raise EpochEnded("rank 0 was suspended")

    def notify(self) -> None:
        self.journal.append("notify")

    def _require_alive(self) -> None:
        if self.ended is not None:
            raise EpochEnded(self.ended)
