"""The sessions to all ranks: opened when a rank is known, opened again when one breaks, closed when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from baleen.clock import Clock
from baleen.ids import Incarnation
from baleen.reports import Load, RankInfo
from baleen.telemetry import Log
from baleen.tls_config import TlsConfig
from router.members import Changes, Members
from router.session import RankSession, SessionTimes

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


@dataclass(slots=True, eq=False)
class _Line:
    """What keeps one session up. wanted: the rank should be there."""

    task: asyncio.Task[None]
    wanted: bool = True


class RankSessions:
    """Keeps one open session to every rank that should be there, and tells `members` what it hears on them."""

    def __init__(
        self,
        members: Members,
        clock: Clock,
        log: Log,
        times: SessionTimes | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        tls: TlsConfig | None = None,
    ) -> None:
        """on_change: called whenever a rank was found, lost, or has reported."""
        self._members = members
        self._clock = clock
        self._log = log
        self._times = times or SessionTimes()
        self._on_change = on_change
        self._tls = tls
        self._lines: dict[str, _Line] = {}
        self._open: dict[Incarnation, RankSession] = {}
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def open(self) -> Mapping[Incarnation, RankSession]:
        """Sessions that can be used now."""
        return self._open

    def follow(self, changes: Changes) -> None:
        """Open sessions to ranks that came; those of ranks that went are not opened again once they break."""
        for info in changes.removed:
            line = self._lines.get(info.incarnation)
            if line is not None:
                line.wanted = False
        for info in changes.added:
            self._keep(info.incarnation, info.address, info.incarnation)

    def connect(self, addresses: Sequence[str]) -> None:
        """Keep sessions to these addresses, whichever life of a rank answers there."""
        for address in addresses:
            self._keep(address, address, None)

    def _keep(self, key: str, address: str, incarnation: Incarnation | None) -> None:
        line = self._lines.get(key)
        if line is not None:
            line.wanted = True
            return
        task = asyncio.create_task(self._keep_up(key, address, incarnation), name=f"session {address}")
        self._lines[key] = _Line(task)

    async def _keep_up(self, key: str, address: str, expected: Incarnation | None) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            # once around at least: the line is entered right after this task was made
            while True:
                session = RankSession(
                    address,
                    expected=expected,
                    clock=self._clock,
                    times=self._times,
                    on_load=self._note_load,
                    tls=self._tls,
                )
                try:
                    cause = await session.run(lambda session=session: self._opened(session))  # type: ignore[misc]
                except Exception as error:
                    # a fault of ours with one rank must not cost the router all others
                    cause = f"fault of the router: {error!r}"
                    self._log.error("session failed", address=address, cause=cause)
                finally:
                    self._closed(session)
                if session.info is not None:
                    pause_s = FIRST_PAUSE_S
                    self._log.warning("rank lost", address=address, cause=cause)
                if not self._lines[key].wanted:
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if not self._lines[key].wanted:
                    return
        finally:
            self._lines.pop(key, None)

    def _opened(self, session: RankSession) -> None:
        info = session.info
        assert info is not None
        self._open[info.incarnation] = session
        if self._members.info(info.incarnation) is None:
            self._members.apply({other.info.incarnation: other.info for other in self._open.values() if other.info})
        self._members.introduced(info)
        self._members.reached(info.incarnation)
        self._log.info("rank found", address=session.address, role=info.role, pool=info.pool, group=info.group)
        self._announce()

    def _closed(self, session: RankSession) -> None:
        info = session.info
        if info is not None and self._open.get(info.incarnation) is session:
            del self._open[info.incarnation]
            self._members.lost(info.incarnation)
            self._announce()

    def _note_load(self, info: RankInfo, load: Load) -> None:
        self._members.report(info.incarnation, load)
        self._announce()

    def _announce(self) -> None:
        self._on_change()
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self, timeout_s: float) -> None:
        """Return once a rank was found or lost or has reported, or after `timeout_s`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    async def close(self) -> None:
        """End all sessions; the ranks end what runs on them."""
        tasks = [line.task for line in self._lines.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
