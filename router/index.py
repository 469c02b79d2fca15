"""The router's side of Redis: which ranks hold how much of a prompt, and which ranks there are.

Every call ends within its budget. A Redis that fails costs hits, and while it keeps failing it is not asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from baleen import keyspace, redis_client
from baleen.blocks import BlockHash
from baleen.clock import Clock, SystemClock
from baleen.ids import Incarnation
from baleen.keyspace import MalformedReply, Script
from baleen.metrics import Histogram, histogram
from baleen.redis_config import RedisConfig
from baleen.reports import RankInfo
from router.breaker import Breaker, BreakerState

MOST_CONNECTIONS = 32
LOOKUP_BUDGET_S = 0.03
MEMBERS_BUDGET_S = 0.5


def open_client(
    config: RedisConfig | str, *, most_connections: int = MOST_CONNECTIONS, timeout_s: float = MEMBERS_BUDGET_S
) -> redis.asyncio.Redis:
    """A client for a router, of a configuration or of a URL alone; how long a call may take, its caller says.

    timeout_s: longest wait for a connection, and for an answer on it, whatever the caller says.
    """
    return redis_client.open_async_client(
        config,
        socket_timeout_s=timeout_s,
        connect_timeout_s=timeout_s,
        most_connections=most_connections,
    )


@dataclass(slots=True, eq=False)
class IndexCounts:
    """What became of the lookups so far. blind: no answer, so the decision was made without the index.

    seconds: of those that Redis was asked for.
    """

    seconds: Histogram = field(default_factory=lambda: histogram("kv_index_lookup_seconds"))
    answered: int = 0
    blind: int = 0
    failures: int = 0
    last_failure: str = ""


class PrefixIndex:
    """Lookups of one router in one cluster's Redis."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        cluster: str,
        breaker: Breaker,
        *,
        budget_s: float = LOOKUP_BUDGET_S,
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._prefix = keyspace.key_prefix(cluster)
        self._breaker = breaker
        self._budget_s = budget_s
        self._clock = clock or SystemClock()
        self._calls: set[asyncio.Task[Any]] = set()
        self.counts = IndexCounts()

    @property
    def is_asked(self) -> bool:
        """Whether Redis is asked now, or was found to fail."""
        return self._breaker.state is BreakerState.CLOSED

    async def prefixes(self, hashes: Sequence[BlockHash]) -> Mapping[Incarnation, int]:
        """Leading blocks of the chain that each living rank holds; ranks that hold none are left out.

        Empty when Redis gives no answer within the budget, or is not asked because it gave none before.
        """
        if not hashes:
            return {}
        if not self._breaker.allows():
            self.counts.blind += 1
            return {}
        begin = self._clock.now()
        try:
            reply = await self._within_budget(keyspace.LOOKUP, keyspace.pack_hashes(hashes))
            found = keyspace.decode_prefixes(reply)
        except (RedisError, TimeoutError, OSError, MalformedReply) as error:
            self._breaker.failed()
            self.counts.blind += 1
            self.counts.failures += 1
            self.counts.last_failure = f"{type(error).__name__}: {error}"
            return {}
        finally:
            self.counts.seconds.observe(self._clock.now() - begin)
        self._breaker.succeeded()
        self.counts.answered += 1
        return found

    async def members(self, *, budget_s: float = MEMBERS_BUDGET_S) -> Mapping[Incarnation, RankInfo] | None:
        """The ranks whose lease is alive; None if Redis gave no answer within the budget."""
        try:
            async with asyncio.timeout(budget_s):
                return keyspace.decode_members(await self._call(keyspace.MEMBERS))
        except (RedisError, TimeoutError, OSError, MalformedReply) as error:
            self.counts.last_failure = f"{type(error).__name__}: {error}"
            return None

    async def close(self) -> None:
        """Close the connections."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()

    async def _within_budget(self, script: Script, *arguments: bytes) -> Any:
        """The reply; raises TimeoutError at the end of the budget, behind which the call goes on, unheard.

        To cut it off would throw its connection away; where connecting takes longer than the budget, none would be
        had ever.
        """
        call = asyncio.create_task(self._call(script, *arguments))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        done, _ = await asyncio.wait([call], timeout=self._budget_s)
        if not done:
            raise TimeoutError(f"no answer within {self._budget_s:g} s")
        return call.result()

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # heard, so that nobody complains that it was not
            call.exception()

    async def _call(self, script: Script, *arguments: bytes) -> Any:
        try:
            return await self._client.evalsha(script.sha, 1, self._prefix, *arguments)
        except NoScriptError:
            return await self._client.eval(script.source, 1, self._prefix, *arguments)
