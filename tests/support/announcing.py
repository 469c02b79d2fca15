"""Announcers and routers' indexes on a real server, for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from baleen.blocks import BlockHash
from baleen.clock import Clock, SystemClock
from baleen.redis_config import RedisConfig
from baleen.telemetry import Log
from router.breaker import Breaker
from router.index import PrefixIndex, open_client
from tests.support.clock import ManualClock
from tests.support.redis_server import rank_info
from tests.support.shelf import Shelf
from workers.cache import announce
from workers.cache.announce import Announcer, AnnounceTimes, EventFeed

CLUSTER = "test"
TIMES = AnnounceTimes(lease_s=1.0, renew_s=0.1)


class AnnouncedRank:
    """An announcer with its shelf; `lines` is its log."""

    def __init__(self, config: RedisConfig | str, name: str, *, times: AnnounceTimes = TIMES) -> None:
        self.shelf = Shelf()
        self.feed = EventFeed(self.shelf)
        self.lines: list[str] = []
        self.announcer = Announcer(
            announce.open_client(config, socket_timeout_s=0.2),
            CLUSTER,
            rank_info(name),
            self.feed,
            clock=SystemClock(),
            log=Log(write=self.lines.append),
            times=times,
        )
        self.announcer.start()

    def store(self, hashes: Sequence[BlockHash]) -> None:
        """Hold these blocks too."""
        self.shelf.store(hashes)
        self.feed.publish()

    def remove(self, hashes: Sequence[BlockHash]) -> None:
        """Hold these blocks no more."""
        self.shelf.remove(hashes)
        self.feed.publish()

    def close(self) -> None:
        """Give the lease back and end its thread."""
        self.announcer.close(10.0)


@contextlib.asynccontextmanager
async def index_of(
    config: RedisConfig | str, *, budget_s: float = 1.0, clock: Clock | None = None
) -> AsyncIterator[PrefixIndex]:
    """A router's index. Its breaker, once open, stays so unless `clock` goes on."""
    index = PrefixIndex(open_client(config), CLUSTER, Breaker(clock or ManualClock()), budget_s=budget_s)
    try:
        yield index
    finally:
        await index.close()


async def until(
    config: RedisConfig | str,
    hashes: Sequence[BlockHash],
    expected: Mapping[str, int],
    *,
    timeout_s: float = 30.0,
) -> None:
    """Ask until the answer is the expected one. Failures of Redis on the way are asked again."""
    async with index_of(config, clock=SystemClock()) as index:
        found: Mapping[str, int] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while (found := await index.prefixes(hashes)) != expected:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{found} is not {expected}; {index.counts}") from None
