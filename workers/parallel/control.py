"""The control thread: heartbeats, the end of the epoch, milestones and leaving, beside the collectives.

It never waits for the main thread, so that a main thread that is stuck in a collective still learns, through
`on_end`, that the epoch is over. Guards invariant 6.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping

from baleen.clock import Clock
from baleen.config import ParallelConfig
from workers.parallel.doorbell import Doorbell
from workers.parallel.links import Link, Links
from workers.parallel.membership import Membership
from workers.parallel.messages import Ended, Heartbeat, Hello, Leaving, MalformedMessage, Message, Reached
from workers.parallel.progress import Progress

TELL_TIMEOUT_S = 0.2
"""How long `end` waits until the peers have heard of it; they see the connection close anyway."""


class ControlPlane:
    """One rank's end of the control connections.

    `cause` is None until the epoch is over. It is set once, after the peers were told; then the `ended` bell rings
    and `on_end` is called with it, from the control thread.
    """

    def __init__(
        self,
        config: ParallelConfig,
        sockets: Mapping[int, socket.socket],
        membership: Membership,
        progress: Progress,
        *,
        ended: Doorbell,
        on_end: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self.cause: str | None = None
        self.membership = membership
        self._config = config
        self._progress = progress
        self._ended_bell = ended
        self._on_end = on_end
        self._clock = clock

        # What the other threads ask for and wait for, under the condition's lock.
        self._changed = threading.Condition()
        self._asked_cause: str | None = None
        self._milestones: set[str] = set()
        self._reached: dict[str, set[int]] = {}
        self._leaving = False
        self._stopping = False
        self._all_closed = False

        # The control thread's own.
        self._bell = Doorbell()
        self._links = Links(sockets, self._bell)
        self._announced: set[str] = set()
        self._goodbye_said = False
        self._beaten_at = clock.now()
        self._beats_at = self._beaten_at
        self._wakes_at = self._beaten_at
        self._thread = threading.Thread(target=self._run, name="baleen-control", daemon=True)

    def start(self) -> None:
        """Begin. The connections are the control thread's from here on."""
        self._thread.start()

    def end(self, cause: str) -> str:
        """End the epoch for all and return the cause that counts, which is the first.

        Returns once the peers have heard of it, or after 0.2 s. Not for the control thread itself.
        """
        with self._changed:
            self._asked_cause = self._asked_cause or cause
            self._bell.ring()
            self._changed.wait_for(lambda: self._all_closed, TELL_TIMEOUT_S)
            return self.cause or self._asked_cause

    def wait_for_cause(self, timeout_s: float) -> str | None:
        """Give the news of a loss a moment to arrive here too."""
        with self._changed:
            self._changed.wait_for(lambda: self.cause is not None, timeout_s)
            return self.cause

    def await_all(self, milestone: str, timeout_s: float) -> list[int]:
        """Tell the others of `milestone` and wait for theirs: returns the ranks that did not come in time.

        Returns early, with whoever is missing, when the epoch ends.
        """
        peers = set(range(self._config.world_size)) - {self._config.rank}
        with self._changed:
            self._milestones.add(milestone)
            self._bell.ring()
            reached = self._reached.setdefault(milestone, set())
            self._changed.wait_for(lambda: reached >= peers or self.cause is not None, timeout_s)
            return sorted(peers - reached)

    def suspended_s(self) -> float:
        """How long no heartbeat left this rank, where that is longer than its peers wait for one; else 0.

        Peers count from when they heard it, so none of them has given this rank up before this says so.
        """
        gap_s = self._clock.now() - self._beaten_at
        return gap_s if gap_s > self._config.heartbeat_timeout_s and self._thread.is_alive() else 0.0

    def leave(self, timeout_s: float) -> None:
        """Say goodbye, wait until the others did or have gone, and stop the thread."""
        for flag, patience_s in (("_leaving", timeout_s), ("_stopping", None)):
            with self._changed:
                setattr(self, flag, True)
                self._bell.ring()
            self._thread.join(patience_s)

    def stalled(self, now: float) -> str:
        """The cause when this rank's main thread waited too long in a collective."""
        return self.membership.overdue(
            self.membership.behind(self._progress.collectives),
            where=f"a collective of step {self._progress.mark.step}",
            timeout_s=self._config.collective_timeout_s,
            now=now,
        )

    def _run(self) -> None:
        try:
            while not self._stopping and not self._all_closed:
                self._turn()
        except BaseException as error:
            self._conclude(f"rank {self._config.rank}: the control thread failed: {error!r}")
            raise
        finally:
            self._links.close()
            self._bell.close()

    def _turn(self) -> None:
        judging = self.cause is None and not self._goodbye_said
        self._wakes_at = min(self._beats_at, self.membership.silence_ends_at()) if judging else self._beats_at
        readable = self._links.wait(self._wakes_at - self._clock.now())
        now = self._clock.now()
        self._notice_suspension(now)
        self._receive(readable, now)
        self._obey()
        if now >= self._beats_at:
            self._beaten_at, self._beats_at = now, now + self._config.heartbeat_interval_s
            self._beat(now)
        self._judge(now)
        self._let_go()

    def _notice_suspension(self, now: float) -> None:
        overslept_s = now - self._wakes_at
        if suspended_s := self.suspended_s():
            # The others have given this rank up by now; blaming them for the silence would be wrong.
            self._conclude(f"rank {self._config.rank} was suspended for {suspended_s:.1f} s")
        elif overslept_s > self._config.heartbeat_timeout_s / 4:
            self.membership.forgive(overslept_s, now)

    def _receive(self, readable: list[Link], now: float) -> None:
        """Read everything before judging any closed connection: the root cause may be in another one."""
        for link in readable:
            try:
                messages = link.receive()
            except MalformedMessage as error:
                self._conclude(f"rank {link.rank} sent a malformed control message: {error}")
                messages, link.ended = [], True
            self.membership.heard(link.rank, now)
            for message in messages:
                self._take(link.rank, message)
        for link in readable:
            if link.ended:
                self._links.stop_reading(link)
                self._conclude(self.membership.closed(link.rank))

    def _let_go(self) -> None:
        if self.cause is None and not self._goodbye_said:
            return
        self._links.drop_ended()
        if not self._links:
            with self._changed:
                self._all_closed = True
                self._changed.notify_all()

    def _take(self, rank: int, message: Message) -> None:
        match message:
            case Heartbeat():
                self.membership.beat(rank, message)
            case Reached(milestone):
                with self._changed:
                    self._reached.setdefault(milestone, set()).add(rank)
                    self._changed.notify_all()
            case Ended(cause):
                self._conclude(cause)
            case Leaving():
                self.membership.leave(rank)
            case Hello():
                self._conclude(f"rank {rank} said hello twice")

    def _obey(self) -> None:
        """Do what the other threads have asked for."""
        with self._changed:
            asked, milestones, leaving = self._asked_cause, self._milestones - self._announced, self._leaving
        for milestone in milestones:
            self._announced.add(milestone)
            self._links.broadcast(Reached(milestone))
        self._conclude(asked)
        if leaving and self.cause is None and not self._goodbye_said:
            self._goodbye_said = True
            self._links.broadcast(Leaving())
            self._links.finish()

    def _beat(self, now: float) -> None:
        if self.cause is None and not self._goodbye_said:
            mark = self._progress.mark
            self._links.broadcast(Heartbeat(mark.step, mark.phase, float(now - mark.since), self._progress.collectives))

    def _judge(self, now: float) -> None:
        self._conclude(self.membership.silent(now))
        waiting_since = self._progress.waiting_since
        if waiting_since is not None and now - waiting_since > self._config.collective_timeout_s:
            self._conclude(self.stalled(now))

    def _conclude(self, cause: str | None) -> None:
        """The epoch is over, if there is a cause and it is the first: tell everybody, here and elsewhere.

        After a goodbye nothing is a fault any more: all ranks had agreed to leave.
        """
        if cause is None or self.cause is not None or self._goodbye_said:
            return
        self._links.broadcast(Ended(cause))
        self._links.finish()
        with self._changed:
            self.cause = cause
            self._changed.notify_all()
        self._ended_bell.ring()
        self._on_end(cause)
