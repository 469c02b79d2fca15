"""A rank's lease in Redis, and Redis's knowledge of the blocks that the rank holds.

The step loop hands over the events of its prefix tree once a step; a thread of its own keeps the lease and writes. The
thread remembers what the rank holds, so that it can tell Redis all of it again: when the lease is lost, as after a
long stop or when Redis came back empty, and little by little to keep the entries from expiring.
"""

from __future__ import annotations

import random
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, Protocol

import redis

from baleen import keyspace, redis_client
from baleen.clock import Clock
from baleen.keyspace import Script
from baleen.redis_config import RedisConfig
from baleen.reports import RankInfo
from baleen.telemetry import Log
from workers.cache.events import Event, EventLog, Snapshot
from workers.cache.held import HeldBlocks

SOCKET_TIMEOUT_S = 1.0
RETRY_INTERVAL_S = 0.25
"""Mean time between two tries; each is drawn, so that ranks that failed together do not come back together."""

GATHER_S = 0.02
"""Least time between two writes, so that the events of many steps travel together."""

MOST_WAITING_EVENTS = 65_536


class Shareable(Protocol):
    """What is announced: `workers.cache.blocks.BlockCache`."""

    @property
    def events(self) -> EventLog:
        """What became shareable and ceased to be."""
        ...

    def snapshot(self) -> Snapshot:
        """Everything that can be shared now."""
        ...


class EventFeed:
    """Carries events from the step loop to the announcer; `publish` waits for nothing but a short lock.

    A reader that falls behind loses events. It gets a snapshot once it has caught up, and not before, so that the
    step loop does not make one snapshot after the other for nobody.
    """

    def __init__(self, blocks: Shareable, *, most_waiting: int = MOST_WAITING_EVENTS) -> None:
        self._blocks = blocks
        self._most_waiting = most_waiting
        self._changed = Condition()
        self._news: deque[Snapshot | Event] = deque()
        self._published = 0
        self._lost = False
        self._caught_up = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def publish(self) -> None:
        """Hand over what happened since the last call. For the step loop, once a step."""
        log = self._blocks.events
        if self._lost:
            if self._caught_up:
                self._offer([self._blocks.snapshot()])
        elif log.sequence != self._published:
            self._offer(log.after(self._published))
        self._published = log.sequence

    def take(self, timeout_s: float) -> list[Snapshot | Event]:
        """Everything handed over since the last call, as soon as there is something, or nothing after `timeout_s`."""
        with self._changed:
            if not self._news and not self._closed:
                self._caught_up = True
                self._changed.wait(timeout_s)
            news = list(self._news)
            self._news.clear()
            return news

    def close(self) -> None:
        """End a `take` that waits, and all later ones at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _offer(self, news: list[Event] | list[Snapshot] | None) -> None:
        with self._changed:
            if news is None or len(self._news) + len(news) > self._most_waiting:
                self._news.clear()
                self._lost, self._caught_up = True, False
            else:
                self._news.extend(news)
                self._lost = False
            self._changed.notify()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceTimes:
    """Seconds: life of a lease, between its renewals, and life of a block's entry."""

    lease_s: float = keyspace.LEASE_S
    renew_s: float = keyspace.RENEW_INTERVAL_S
    keep_s: float = keyspace.KEEP_S


def open_client(config: RedisConfig | str, *, socket_timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """A client for an announcer, of a configuration or of a URL alone."""
    return redis_client.open_client(config, socket_timeout_s=socket_timeout_s)


class Announcer:
    """One thread that tells Redis about one rank. Redis may fail in any way: it is tried again, and hits are lost."""

    def __init__(
        self,
        client: redis.Redis,
        cluster: str,
        info: RankInfo,
        feed: EventFeed,
        *,
        clock: Clock,
        log: Log,
        times: AnnounceTimes | None = None,
        draw_tag: Callable[[int], bytes] = secrets.token_bytes,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._prefix = keyspace.key_prefix(cluster)
        self._info = info
        self._incarnation = info.incarnation.encode()
        self._feed = feed
        self._clock = clock
        self._log = log
        self._times = times or AnnounceTimes()
        self._draw_tag = draw_tag
        self._jitter = jitter
        self._blocks = HeldBlocks()
        self._tag: bytes | None = None
        self._old_tag = b""
        self._serial = 0
        self._lease_ends = 0.0
        self._renew_at = self._write_at = self._try_at = 0.0
        self._failing = False
        self.num_failures = 0
        self.num_leases_lost = 0
        self._last_success: float | None = None
        self._thread = Thread(target=self._run, name="announcer", daemon=True)

    @property
    def registered(self) -> bool:
        """Whether the rank holds a lease, as far as it knows."""
        return self._tag is not None

    @property
    def last_success(self) -> float | None:
        """When Redis last took something, in seconds of the clock; None before the first time."""
        return self._last_success

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float = 2 * SOCKET_TIMEOUT_S) -> None:
        """Give the lease back, if Redis can be reached, and end the thread."""
        self._feed.close()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._feed.closed:
            self._blocks.apply(self._feed.take(self._idle_time()))
            now = self._clock.now()
            if self._tag is None:
                self._blocks.forget_untold()
            if now >= self._try_at:
                self._attempt(now)
        if self._tag is not None and not self._failing:
            self._attempt_release(self._tag)
        self._client.close()

    def _idle_time(self) -> float:
        """Seconds until something is due."""
        due = self._renew_at
        if self._blocks.num_untold:
            due = min(due, self._write_at)
        return max(0.0, max(due, self._try_at) - self._clock.now())

    def _attempt(self, now: float) -> None:
        try:
            self._keep_lease(now)
            if self._blocks.num_untold and now >= self._write_at:
                self._write()
        except redis.RedisError as error:
            self._fail(now, error)
            return
        self._last_success = now
        if self._failing:
            self._failing = False
            self._log.info("redis answers again")

    def _fail(self, now: float, error: redis.RedisError) -> None:
        self.num_failures += 1
        if not self._failing:
            self._failing = True
            self._log.warning("redis cannot be reached, prefixes are not announced", cause=str(error))
        self._try_at = now + RETRY_INTERVAL_S * (0.5 + self._jitter())
        if isinstance(error, redis.ReadOnlyError):
            # a replica now: the primary may be found where this one was
            self._client.connection_pool.disconnect()
        broken = "WRONGTYPE" in str(error)
        if self._tag is not None and (broken or now >= self._lease_ends):
            self._lose_lease()

    def _keep_lease(self, now: float) -> None:
        if self._tag is not None and now >= self._renew_at:
            if self._tell(keyspace.RENEW, self._tag, *self._lease_ms()):
                self._renewed(now)
                self._blocks.refresh(2 * self._times.renew_s / self._times.keep_s)
                self._call(keyspace.CLEAN, keyspace.CLEAN_BLOCKS)
            else:
                self._lose_lease()
        if self._tag is None:
            self._register(now)

    def _register(self, now: float) -> None:
        """Take a lease under a fresh tag, and begin to tell everything anew."""
        tag = self._draw_tag(keyspace.TAG_BYTES)
        info = keyspace.encode_info(self._info)
        if not self._call(keyspace.REGISTER, tag, self._old_tag, self._incarnation, info, *self._lease_ms()):
            return  # taken: the next round draws again
        self._tag = self._old_tag = tag
        self._serial = 0
        self._renewed(now)
        self._blocks.tell_all()
        self._log.info("announced", blocks=len(self._blocks.held))

    def _write(self) -> None:
        """Tell one batch; what remains follows at once."""
        assert self._tag is not None
        changes = self._blocks.take(keyspace.BATCH_BLOCKS)
        stored, removed = keyspace.pack_hashes(changes.stored), keyspace.pack_hashes(changes.removed)
        keep_ms = round(self._times.keep_s * 1000)
        try:
            taken = self._tell(keyspace.ANNOUNCE, self._tag, keep_ms, stored, removed)
        except redis.RedisError:
            self._blocks.put_back(changes)
            raise
        if not taken:
            self._lose_lease()
        elif not self._blocks.num_untold:
            self._write_at = self._clock.now() + GATHER_S

    def _attempt_release(self, tag: bytes) -> None:
        try:
            self._call(keyspace.RELEASE, tag, self._incarnation)
        except redis.RedisError as error:
            self._log.warning("the lease could not be given back and will expire", cause=str(error))

    def _lose_lease(self) -> None:
        self.num_leases_lost += 1
        self._tag = None
        self._blocks.forget_untold()
        self._renew_at = 0.0
        self._log.warning("the lease in redis is lost")

    def _renewed(self, asked_at: float) -> None:
        """The server counts from when it did it, which is later than when it was asked."""
        self._lease_ends = asked_at + self._times.lease_s
        self._renew_at = asked_at + self._times.renew_s

    def _lease_ms(self) -> tuple[int, int]:
        return round(self._times.lease_s * 1000), round(self._times.keep_s * 1000)

    def _tell(self, script: Script, tag: bytes, *arguments: bytes | int) -> bool:
        """Tell numbered news. What was perhaps not heard is told again, or something else instead, as the same."""
        taken = bool(self._call(script, tag, self._incarnation, self._serial + 1, *arguments))
        self._serial += taken
        return taken

    def _call(self, script: Script, *arguments: bytes | int) -> Any:
        try:
            return self._client.evalsha(script.sha, 1, self._prefix, *arguments)
        except redis.exceptions.NoScriptError:
            return self._client.eval(script.source, 1, self._prefix, *arguments)
