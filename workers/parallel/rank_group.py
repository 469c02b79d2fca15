"""The group of many ranks, as one of them sees it: puts lockstep, control thread and collectives together."""

from __future__ import annotations

import torch.distributed as dist

from baleen.clock import Clock
from baleen.config import ParallelConfig
from baleen.errors import EpochEnded
from baleen.ids import Epoch, Incarnation
from workers.parallel.all_to_all import AllToAllExchange
from workers.parallel.collectives import Collectives
from workers.parallel.control import ControlPlane
from workers.parallel.group import Agreement, Health
from workers.parallel.lockstep import DecodeSize, EpochOver, LaneClosed, Lockstep, Overdue, Word, common_size
from workers.parallel.progress import Progress

CAUSE_TIMEOUT_S = 0.5
"""How long a failed collective waits for the control thread to learn who is gone."""
LEAVE_TIMEOUT_S = 2.0
"""How long a rank that leaves in order waits for the others to do the same."""


class RankGroup:
    """A `Group` with world_size above 1; `join.open_group` makes it."""

    def __init__(
        self,
        config: ParallelConfig,
        incarnation: Incarnation,
        *,
        lockstep: Lockstep,
        control: ControlPlane,
        progress: Progress,
        clock: Clock,
    ) -> None:
        self.rank = config.rank
        self.world_size = config.world_size
        self._config = config
        self._incarnation = incarnation
        self._lockstep = lockstep
        self._control = control
        self._progress = progress
        self._clock = clock
        self._next_step = 0

    def exchange(
        self, step: int, num_tokens: int, *, draining: bool = False, decode: DecodeSize | None = None
    ) -> Agreement:
        """See `Group.exchange`."""
        assert step == self._next_step, f"step {step} after step {self._next_step - 1}"
        self._next_step += 1
        self._progress.enter("exchange", step)
        own = Word(step, num_tokens, draining, decode)
        try:
            words = self._lockstep.exchange(own, self._config.collective_timeout_s)
        except (EpochOver, LaneClosed, Overdue) as error:
            raise self._ended_by(error) from error
        words[self.rank] = own
        for rank, word in words.items():
            if word.step != step:
                raise self._over(f"rank {rank} is at step {word.step} while rank {self.rank} is at step {step}")
        self.check()
        in_order = [words[rank] for rank in range(self.world_size)]
        return Agreement(
            step,
            tuple(word.num_tokens for word in in_order),
            tuple(word.draining for word in in_order),
            common_size([word.decode for word in in_order]),
        )

    def wait_for_work(self, timeout_s: float) -> bool:
        """See `Group.wait_for_work`."""
        self._progress.enter("idle")
        try:
            woken = self._lockstep.wait(timeout_s)
        except (EpochOver, LaneClosed) as error:
            raise self._ended_by(error) from error
        self._progress.enter("idle")
        self.check()
        return woken

    def notify(self) -> None:
        """See `Group.notify`."""
        self._lockstep.work.ring()

    def await_all(self, milestone: str, timeout_s: float) -> None:
        """See `Group.await_all`."""
        self._progress.enter(f"await {milestone}")
        missing = self._control.await_all(milestone, timeout_s)
        self.check()
        if missing:
            now = self._clock.now()
            where = f"milestone {milestone!r}"
            raise self._over(self._control.membership.overdue(missing, where=where, timeout_s=timeout_s, now=now))

    def report(self, phase: str) -> None:
        """See `Group.report`."""
        self._progress.enter(phase)

    def check(self) -> None:
        """See `Group.check`."""
        if self._control.cause is not None:
            raise EpochEnded(self._control.cause)
        if suspended_s := self._control.suspended_s():
            raise self._over(f"rank {self.rank} was suspended for {suspended_s:.1f} s")

    def health(self) -> Health:
        """See `Group.health`."""
        mark, now = self._progress.mark, self._clock.now()
        return Health(
            rank=self.rank,
            epoch=Epoch(self._config.epoch),
            incarnation=self._incarnation,
            step=mark.step,
            phase=mark.phase,
            seconds_in_phase=now - mark.since,
            ended=self._control.cause,
            peers=self._control.membership.health(now),
        )

    def expert_exchange(self, num_experts: int) -> AllToAllExchange:
        """See `Group.expert_exchange`."""
        assert dist.group.WORLD is not None
        collectives = Collectives(dist.group.WORLD, self._progress, self._collective_failed)
        return AllToAllExchange(num_experts, rank=self.rank, collectives=collectives)

    def end(self, cause: str) -> None:
        """See `Group.end`."""
        self._control.end(cause)

    def close(self) -> None:
        """See `Group.close`."""
        self._progress.enter("closed")
        in_order = self._control.cause is None
        self._control.leave(LEAVE_TIMEOUT_S if in_order else 0.0)
        self._lockstep.close()
        if in_order:
            # After a fault this could wait for ever for collectives that never complete; the process ends anyway.
            dist.destroy_process_group()

    def _over(self, cause: str) -> EpochEnded:
        """Tell the others of `cause`, unless an earlier one is known."""
        return EpochEnded(self._control.end(cause))

    def _ended_by(self, error: EpochOver | LaneClosed | Overdue) -> EpochEnded:
        membership = self._control.membership
        if isinstance(error, Overdue):
            return self._over(
                membership.overdue(
                    error.ranks,
                    where=f"step {self._progress.mark.step}",
                    timeout_s=self._config.collective_timeout_s,
                    now=self._clock.now(),
                )
            )
        cause = self._control.wait_for_cause(CAUSE_TIMEOUT_S)
        if cause is None:
            assert isinstance(error, LaneClosed), "the bell rings after the cause is set"
            cause = membership.gone(error.rank)
        return self._over(cause)

    def _collective_failed(self, error: RuntimeError) -> EpochEnded:
        """A backend only knows that a connection failed or time ran out; the control thread knows who is gone."""
        waiting_since, now = self._progress.waiting_since, self._clock.now()
        cause = self._control.wait_for_cause(CAUSE_TIMEOUT_S)
        if (
            cause is None
            and waiting_since is not None
            and now - waiting_since > 0.9 * self._config.collective_timeout_s
        ):
            cause = self._control.stalled(now)
        if cause is None:
            step, reason = self._progress.mark.step, str(error).splitlines()[0][:300]
            cause = f"a collective of step {step} failed at rank {self.rank}: {reason}"
        return self._over(cause)
