"""Fetches of a prefix: the calls for one of them, and what the router learned from the last ones.

Whatever fails in a fetch costs time only: the rank that wanted the blocks computes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from baleen.blocks import BLOCK_TOKENS
from baleen.errors import BaleenError
from baleen.ids import Incarnation
from router.messages import FetchEnded, Job, Reservation
from router.policy.snapshot import FetchPlan
from router.record import FetchTold, RequestRecord
from router.session import RankSession

PAUSE_S = 5.0
"""How long nothing is fetched from a rank that failed to deliver."""

SMOOTHING = 0.2
"""Weight of the latest fetch in the measured speed."""


class FetchLog:
    """What the last fetches of one router showed: their speed, and who failed to deliver."""

    def __init__(self, *, block_bytes: int, handoff_s: float, now: Callable[[], float]) -> None:
        """block_bytes and handoff_s: as the policy counts with."""
        self._block_bytes = block_bytes
        self._handoff_s = handoff_s
        self._now = now
        self._barred: dict[Incarnation, float] = {}
        self._s_per_block = 0.0

    @property
    def bytes_per_s(self) -> float:
        """Speed of fetches, 0 until one has been measured."""
        return self._block_bytes / self._s_per_block if self._s_per_block else 0.0

    @property
    def barred(self) -> frozenset[Incarnation]:
        """Ranks that nothing is to be fetched from now."""
        if not self._barred:
            return frozenset()
        now = self._now()
        self._barred = {name: until for name, until in self._barred.items() if until > now}
        return frozenset(self._barred)

    def delivered(self, num_blocks: int, seconds: float) -> None:
        """A fetch of so many blocks took so long."""
        # what every fetch costs is counted apart; it may have cost less than that
        s_per_block = max(seconds - self._handoff_s, seconds / 2) / num_blocks
        old = self._s_per_block
        self._s_per_block = s_per_block if not old else old + SMOOTHING * (s_per_block - old)

    def failed(self, holder: Incarnation) -> None:
        """A rank did not deliver what it was asked for."""
        self._barred[holder] = self._now() + PAUSE_S


@dataclass(frozen=True, slots=True)
class FetchRoute:
    """A plan with the sessions to both of its ranks. least_s: time that it is given at least. reserve_s: how long the
    destination keeps blocks for it, and then for whoever uses the ticket.
    """

    plan: FetchPlan
    holder: RankSession
    destination: RankSession
    least_s: float
    reserve_s: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """Blocks at the destination, pinned there for whoever uses the ticket. num_held: those that it had before."""

    ticket: str
    num_held: int


async def fetch_prefix(
    route: FetchRoute,
    token_ids: tuple[int, ...],
    job: Job,
    record: RequestRecord,
    log: FetchLog,
    now: Callable[[], float],
) -> Fetched | None:
    """Have the planned blocks of `token_ids` sent; None if the destination gave no ticket.

    Ends after the time in which the blocks could be computed, or `least_s` if that is more. Cancelled, it gives its
    reservation back.
    """
    begun, plan = now(), route.plan
    record.enter("fetching", begun)
    record.happened(
        f"fetch of {plan.num_fetched} blocks from {route.holder.address} to {route.destination.address}, "
        f"to save {plan.gain_s:.3f} s",
        begun,
    )
    limit_s = max(0.0, min(max(plan.compute_s, route.least_s), job.deadline - begun))
    prefix = token_ids[: plan.num_blocks * BLOCK_TOKENS + 1]
    reservation: Reservation | None = None
    ended: FetchEnded | None = None
    failure, at_holder = "", False
    try:
        async with asyncio.timeout(limit_s):
            reservation = await route.destination.reserve(
                prefix, cache_salt=job.cache_salt, timeout_s=route.reserve_s, wait_s=limit_s
            )
            if reservation.num_reserved_blocks:
                at_holder = True
                ended = await route.holder.fetch(
                    prefix,
                    reservation,
                    cache_salt=job.cache_salt,
                    timeout_s=limit_s - (now() - begun),
                    traceparent=job.traceparent,
                )
                failure = ended.failure
    except TimeoutError:
        failure = f"not done after {limit_s:.3f} s"
    except BaleenError as error:
        failure = str(error)
    except BaseException:
        if reservation is not None:
            route.destination.release(reservation.ticket)
        raise
    seconds, num_taken = now() - begun, ended.num_pushed if ended is not None else 0
    record.fetches.append(
        FetchTold(
            begun + seconds,
            seconds,
            route.holder.address,
            route.destination.address,
            plan.num_fetched,
            num_taken,
            failure,
        )
    )
    if num_taken:
        log.delivered(num_taken, seconds)
    elif at_holder and (ended is None or ended.num_blocks > plan.num_blocks - plan.num_fetched):
        log.failed(plan.holder)
    record.meters.fetches["failed" if not num_taken else "partial" if failure else "complete",] += 1
    record.happened(f"fetched {num_taken} blocks in {seconds:.3f} s" + (f": {failure}" if failure else ""), now())
    if reservation is None:
        return None
    return Fetched(reservation.ticket, reservation.num_held_blocks)
