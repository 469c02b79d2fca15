"""The contract of a group: what the step loop may ask of the ranks that step, live and die together.

`join.open_group` opens one: `LocalGroup` serves one rank, `RankGroup` serves more, and both keep this contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from baleen.ids import Epoch, Incarnation
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.lockstep import DecodeSize


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all ranks said at the start of one step, the same at each of them.

    Holding it proves that every rank has finished step `step - 1`. decode: the size that holds every rank's rows, if no
    rank brings anything but a decode step.
    """

    step: int
    tokens_per_rank: tuple[int, ...]
    draining_per_rank: tuple[bool, ...]
    decode: DecodeSize | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole group in this step."""
        return sum(self.tokens_per_rank)

    @property
    def all_idle(self) -> bool:
        """Whether no rank has a token to compute: the step is not run, and the group may wait for work."""
        return self.num_tokens == 0

    @property
    def any_draining(self) -> bool:
        """Whether some rank was told to leave, so that all must drain: a group leaves whole."""
        return any(self.draining_per_rank)

    @property
    def may_leave(self) -> bool:
        """Whether all ranks drain and none has work: each of them may `close` now, and none needs the others."""
        return all(self.draining_per_rank) and self.all_idle


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """What the last heartbeat of another rank said, and how old it is."""

    rank: int
    incarnation: Incarnation
    step: int
    phase: str
    seconds_in_phase: float
    silence_s: float


@dataclass(frozen=True, slots=True)
class Health:
    """Progress of this rank's main thread, as seen from outside of it.

    A phase that lasts longer than its work can explain is a wedged loop: whoever answers for health decides with
    `phase` and `seconds_in_phase`. `idle` is renewed each time that `wait_for_work` is entered or returns.
    """

    rank: int
    epoch: Epoch
    incarnation: Incarnation
    step: int
    phase: str
    seconds_in_phase: float
    ended: str | None
    peers: tuple[PeerHealth, ...]


class Group(Protocol):
    """One rank's view of its group. The step loop's thread calls it; `notify`, `health`, `end` suit any thread."""

    rank: int
    world_size: int

    def exchange(
        self, step: int, num_tokens: int, *, draining: bool = False, decode: DecodeSize | None = None
    ) -> Agreement:
        """Meet all ranks at the start of step `step` (0, 1, 2, ... without gaps) and learn what each brings.

        decode: the size of this rank's step, if it is a decode step; NO_ROWS of a rank without tokens. Wakes the others
        first where the group was idle. Raises EpochEnded.
        """
        ...

    def wait_for_work(self, timeout_s: float) -> bool:
        """Block until `notify`, a peer's wake for a step not yet exchanged, or `timeout_s`.

        False means that the time ran out. After True, and only needed then, the caller goes on to `exchange`.
        Raises EpochEnded if the epoch ends meanwhile.
        """
        ...

    def notify(self) -> None:
        """Make the present `wait_for_work`, or else the next one, return."""
        ...

    def await_all(self, milestone: str, timeout_s: float) -> None:
        """Return when every rank has called this with `milestone`, for example when all have loaded their weights.

        Raises EpochEnded that names the ranks that did not come and what they were doing.
        """
        ...

    def report(self, phase: str) -> None:
        """Mark progress: the main thread enters `phase` now. Costs about a microsecond."""
        ...

    def check(self) -> None:
        """Raise EpochEnded if the epoch is over, or was ended elsewhere while this process was suspended.

        Called right before outputs leave the rank, so that a rank that slept through the end emits nothing.
        """
        ...

    def health(self) -> Health:
        """Progress of this rank and of its peers."""
        ...

    def expert_exchange(self, num_experts: int) -> ExpertExchange:
        """Dispatch and combine over this group. Raises ConfigError unless the ranks divide the experts."""
        ...

    def end(self, cause: str) -> None:
        """End the epoch for every rank: they stop with `cause`. Returns once the peers were told, or after 0.2 s."""
        ...

    def close(self) -> None:
        """Leave in order, after an Agreement that `may_leave` or after the end; never raises EpochEnded."""
        ...
