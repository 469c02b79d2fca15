"""Who may start now: a bounded queue with deadlines and fair shares, and refusal of what would come too late.

A request that has been admitted has its ranks: `place` chose them and counted it there. Nothing polls: requests are
looked at when one arrives and after `capacity_changed`, and a timer ends those whose deadline has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from baleen.clock import Clock
from baleen.errors import BaleenError, DeadlineExceeded, NotReady, QueueFull
from router.fair_queue import Entry, FairQueue

Placement = TypeVar("Placement")

GATHER_S = 0.01
"""Least time between two looks at the queue: ranks report every step, and a look asks the policy many times."""

LEAST_RETRY_S = 0.1
MOST_RETRY_S = 30.0


class ShedError(QueueFull):
    """The request would get its first token too late, or finds no place to wait; it was not started.

    predicted_s: time to the first token. limit_s: what it had to be; None if it was the queue that was full.
    """

    def __init__(self, message: str, *, predicted_s: float, limit_s: float | None, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.predicted_s = predicted_s
        self.limit_s = limit_s


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionParameters:
    """most_waiting: length of the queue. slo_s: time to the first token that must be possible; 0: any.

    rank_wait_s: longest wait while there is no rank that could serve at all. weights: shares of tenants that are not to
    count 1.
    """

    most_waiting: int = 1024
    slo_s: float = 0.0
    rank_wait_s: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applicant(Generic[Placement]):
    """A request that asks to start. deadline: in seconds of the clock. slo_s: its own limit; None: the default.

    place: chooses ranks and counts the request there; None if there is no room now. undo: takes that back. predict:
    seconds to the first token if so many prompt tokens are served before it. NotReady from either means that there is
    no rank, for anybody, and to wait a while; any other BaleenError ends the request.
    """

    request_id: str
    tenant: str
    num_tokens: int
    deadline: float
    place: Callable[[], Placement | None]
    undo: Callable[[Placement], None]
    predict: Callable[[int], float]
    slo_s: float | None = None


@dataclass(slots=True, eq=False)
class AdmissionCounts:
    """What became of the applicants so far.

    late: too late for their first token; full: no place to wait; forsaken: no rank came for them.
    """

    admitted: int = 0
    late: int = 0
    full: int = 0
    expired: int = 0
    forsaken: int = 0

    @property
    def shed(self) -> int:
        """Those that were refused at once."""
        return self.late + self.full


@dataclass(slots=True, eq=False)
class _Waiter(Generic[Placement]):
    applicant: Applicant[Placement]
    result: asyncio.Future[Placement]
    since: float
    obstacle: str = "no rank has room"


class Admission(Generic[Placement]):
    """The queue of one router. For one event loop."""

    def __init__(self, parameters: AdmissionParameters, clock: Clock) -> None:
        self._parameters = parameters
        self._clock = clock
        self._queue: FairQueue[_Waiter[Placement]] = FairQueue(parameters.weights)
        self._deadlines: list[tuple[float, int, Entry[_Waiter[Placement]]]] = []
        self._order = count()
        self._look: asyncio.TimerHandle | None = None
        self._alarm: tuple[float, asyncio.TimerHandle] | None = None
        self._missing: tuple[float, str] | None = None
        self.counts = AdmissionCounts()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(entry.cost for entry in self._queue)

    async def admit(self, applicant: Applicant[Placement]) -> Placement:
        """Wait for the applicant's turn and for room; returns what its `place` gave.

        Raises ShedError at once if it would come too late or the queue is full, DeadlineExceeded when its deadline
        comes first, NotReady when no rank came for too long, and what else `place` raises. A caller that is cancelled
        gives its place in the queue up.
        """
        now = self._clock.now()
        if applicant.deadline <= now:
            self.counts.expired += 1
            raise DeadlineExceeded(f"the deadline of request {applicant.request_id} had passed when it came")
        self._refuse_late(applicant, now)
        waiter: _Waiter[Placement] = _Waiter(applicant, asyncio.get_running_loop().create_future(), now)
        if not len(self._queue):
            placement = self._place(waiter)
            if placement is not None:
                self.counts.admitted += 1
                return placement
        self._make_room(applicant)
        entry = self._queue.push(waiter, tenant=applicant.tenant, cost=applicant.num_tokens)
        heappush(self._deadlines, (applicant.deadline, next(self._order), entry))
        self._wake_by(applicant.deadline)
        if self._missing is not None:
            self._wake_by(self._patience_ends(waiter))
        if len(self._queue) > 1:
            self.capacity_changed()
        try:
            return await waiter.result
        except asyncio.CancelledError:
            self._abandon(entry)
            raise

    def capacity_changed(self) -> None:
        """Room may have come: a rank reported, a request ended, a rank joined. Cheap: looks are gathered."""
        if self._look is None and len(self._queue):
            self._look = asyncio.get_running_loop().call_later(GATHER_S, self.look)

    def look(self) -> None:
        """Admit all that there is room for, after those whose deadline has come were told so."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._expire()
        while self._settle_next():
            pass
        self._forsake()
        if self._alarm is not None:
            self._alarm[1].cancel()
            self._alarm = None
        if self._deadlines:
            self._wake_by(self._deadlines[0][0])
        if self._missing is not None and len(self._queue):
            self._wake_by(min(self._patience_ends(entry.item) for entry in self._queue))

    def close(self) -> None:
        """End the timers and refuse whoever still waits."""
        if self._look is not None:
            self._look.cancel()
        if self._alarm is not None:
            self._alarm[1].cancel()
        for entry in list(self._queue):
            self._fail(entry, NotReady("the router is leaving; the request was not started"))

    def _refuse_late(self, applicant: Applicant[Placement], now: float) -> None:
        slo_s = self._parameters.slo_s if applicant.slo_s is None else applicant.slo_s
        limit_s = min(applicant.deadline - now, slo_s or float("inf"))
        try:
            predicted_s = applicant.predict(self._queue.cost_ahead(applicant.tenant, applicant.num_tokens))
        except NotReady:
            return
        if predicted_s > limit_s:
            self.counts.late += 1
            raise ShedError(
                f"the first token would take {predicted_s:.2f} s, must take at most {limit_s:.2f} s",
                predicted_s=predicted_s,
                limit_s=limit_s,
                retry_after_s=_retry_after(predicted_s - limit_s),
            )

    def _make_room(self, applicant: Applicant[Placement]) -> None:
        """A place in the queue for one more: in a full one, from the tenant with the most for its share."""
        if len(self._queue) < self._parameters.most_waiting:
            return
        self.counts.full += 1
        greediest, pressure = self._queue.greediest()
        if pressure <= self._queue.pressure(applicant.tenant):
            raise self._queue_full(applicant)
        entry = self._queue.newest(greediest)
        self._fail(entry, self._queue_full(entry.item.applicant))

    def _queue_full(self, applicant: Applicant[Placement]) -> ShedError:
        try:
            predicted_s = applicant.predict(self._queue.cost_ahead(applicant.tenant, applicant.num_tokens))
        except BaleenError:
            predicted_s = MOST_RETRY_S
        return ShedError(
            f"{len(self._queue)} requests wait, at most {self._parameters.most_waiting} may",
            predicted_s=predicted_s,
            limit_s=None,
            retry_after_s=_retry_after(predicted_s),
        )

    def _place(self, waiter: _Waiter[Placement]) -> Placement | None:
        try:
            placement = waiter.applicant.place()
        except NotReady as error:
            waiter.obstacle = str(error)
            if self._missing is None:
                self._missing = (self._clock.now(), waiter.obstacle)
            return None
        self._missing = None
        return placement

    def _settle_next(self) -> bool:
        """Admit one waiting request, or fail it if its own `place` does. False if there is room for none."""
        placements: list[Placement] = []
        errors: list[BaleenError] = []

        def is_settled(waiter: _Waiter[Placement]) -> bool:
            if waiter.result.cancelled():
                return True
            try:
                placement = self._place(waiter)
            except BaleenError as error:
                errors.append(error)
                return True
            if placement is not None:
                placements.append(placement)
            return placement is not None

        entry = self._queue.take(is_settled)
        if entry is None:
            return False
        if errors:
            entry.item.result.set_exception(errors[0])
        elif placements:
            self.counts.admitted += 1
            entry.item.result.set_result(placements[0])
        return True

    def _fail(self, entry: Entry[_Waiter[Placement]], error: BaleenError) -> None:
        self._queue.discard(entry)
        # a caller that was cancelled has not run yet to say so itself
        if not entry.item.result.cancelled():
            entry.item.result.set_exception(error)

    def _abandon(self, entry: Entry[_Waiter[Placement]]) -> None:
        """The caller has gone: out of the queue, or, if it was admitted in the same moment, off its ranks."""
        result = entry.item.result
        if result.cancelled():
            self._queue.discard(entry)
        elif result.exception() is None:
            self.counts.admitted -= 1
            entry.item.applicant.undo(result.result())
            self.capacity_changed()

    def _expire(self) -> None:
        now = self._clock.now()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, entry = heappop(self._deadlines)
            waiter = entry.item
            if waiter.result.done():
                continue
            self.counts.expired += 1
            error = DeadlineExceeded(
                f"request {waiter.applicant.request_id} waited {now - waiter.since:.2f} s in the router's queue, "
                f"until its deadline: {waiter.obstacle}"
            )
            self._fail(entry, error)
        if len(self._deadlines) > 2 * len(self._queue) + 64:
            self._deadlines = [item for item in self._deadlines if not item[2].item.result.done()]
            heapify(self._deadlines)

    def _forsake(self) -> None:
        """Tell those for whom no rank has come for too long."""
        if self._missing is None:
            return
        now, limit_s, obstacle = self._clock.now(), self._parameters.rank_wait_s, self._missing[1]
        for entry in [entry for entry in self._queue if self._patience_ends(entry.item) <= now]:
            self.counts.forsaken += 1
            waited_s = now - entry.item.since
            self._fail(entry, NotReady(f"{obstacle}; the request waited {waited_s:.2f} s of at most {limit_s:g} s"))

    def _patience_ends(self, waiter: _Waiter[Placement]) -> float:
        assert self._missing is not None
        return max(waiter.since, self._missing[0]) + self._parameters.rank_wait_s

    def _wake_by(self, time: float) -> None:
        """Look at the queue then, or before."""
        if self._alarm is not None:
            if self._alarm[0] <= time:
                return
            self._alarm[1].cancel()
        delay_s = max(0.0, time - self._clock.now())
        self._alarm = (time, asyncio.get_running_loop().call_later(delay_s, self.look))


def _retry_after(seconds: float) -> float:
    return min(MOST_RETRY_S, max(LEAST_RETRY_S, seconds))
