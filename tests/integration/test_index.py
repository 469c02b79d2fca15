"""Announcers and a router's index with a real server between them, in fair weather and in foul."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from baleen import keyspace
from baleen.clock import SystemClock
from baleen.telemetry import Log
from cluster.embedded import EmbeddedRedis
from router.breaker import Breaker, BreakerState
from router.index import PrefixIndex, open_client
from router.members import Members, watch
from tests.support.clock import ManualClock
from tests.support.redis_server import SERVERS, chain, rank_info, stop_process
from tests.support.shelf import Shelf
from workers.cache import announce
from workers.cache.announce import Announcer, AnnounceTimes, EventFeed

PREFIX = keyspace.key_prefix("test")
TIMES = AnnounceTimes(lease_s=1.0, renew_s=0.1)


@pytest.fixture(params=SERVERS)
def server(request):
    with EmbeddedRedis(program=request.param) as server:
        yield server


class Rank:
    """An announcer with its shelf."""

    def __init__(self, server, name, *, times=TIMES):
        self.shelf = Shelf()
        self.feed = EventFeed(self.shelf)
        self.lines = []
        self.announcer = Announcer(
            announce.open_client(server.url, socket_timeout_s=0.2),
            "test",
            rank_info(name),
            self.feed,
            clock=SystemClock(),
            log=Log(write=self.lines.append),
            times=times,
        )
        self.announcer.start()

    def store(self, hashes):
        self.shelf.store(hashes)
        self.feed.publish()


@pytest.fixture
def ranks(server):
    with contextlib.ExitStack() as undo:

        def start(name, **options):
            rank = Rank(server, name, **options)
            undo.callback(rank.announcer.close, 10.0)
            return rank

        yield start


@contextlib.asynccontextmanager
async def index_of(server, *, budget_s=1.0, clock=None):
    index = PrefixIndex(open_client(server.url), "test", Breaker(clock or ManualClock()), budget_s=budget_s)
    try:
        yield index
    finally:
        await index.close()


async def until(server, hashes, expected, *, timeout_s=30.0):
    """Ask until the answer is the expected one."""
    async with index_of(server) as index, asyncio.timeout(timeout_s):
        while (found := await index.prefixes(hashes)) != expected:
            assert index.counts.failures == 0, index.counts.last_failure
            await asyncio.sleep(0.01)
        return found


def test_what_ranks_hold_is_found_and_what_they_drop_is_not(server, ranks):
    hashes = chain(5)
    first, second = ranks("first"), ranks("second")
    first.store(hashes)
    second.store(hashes[:2])
    asyncio.run(until(server, hashes, {"first": 5, "second": 2}))
    first.shelf.remove(hashes[:2:-1])
    first.feed.publish()
    asyncio.run(until(server, hashes, {"first": 3, "second": 2}))
    first.shelf.clear()
    first.store(chain(2, first_token=1))
    asyncio.run(until(server, hashes, {"second": 2}))
    asyncio.run(until(server, chain(2, first_token=1), {"first": 2}))
    assert first.shelf.num_snapshots == second.shelf.num_snapshots == 0


def test_a_rank_that_leaves_is_gone_at_once(server, ranks):
    rank = ranks("rank")
    rank.store(chain(3))
    asyncio.run(until(server, chain(3), {"rank": 3}))
    rank.announcer.close(10.0)

    async def after():
        async with index_of(server) as index:
            assert await index.prefixes(chain(3)) == {}
            assert await index.members() == {}

    asyncio.run(after())


def test_a_rank_that_stops_renewing_is_never_credited_after_one_lease(server, ranks):
    """Its announcer dies without a word; another's keeps on, and cleans up what it left."""
    dead, alive = ranks("dead", times=AnnounceTimes(lease_s=0.5, renew_s=0.1)), ranks("alive")
    dead.store(chain(3))
    alive.store(chain(1))
    asyncio.run(until(server, chain(3), {"dead": 3, "alive": 1}))
    # from here on every call of it fails, as if its machine were gone
    dead.announcer._client.evalsha = dead.announcer._client.eval = unreachable

    async def after_the_lease(client):
        """Twenty lookups that began after the end of the lease, by the server's own clock."""
        async with index_of(server) as index:
            num_after = 0
            while num_after < 20:
                is_over = not lease_runs(client, b"dead")
                found = await index.prefixes(chain(3))
                assert not is_over or found == {"alive": 1}
                num_after += is_over
                await asyncio.sleep(0.005)
            assert list(await index.members()) == ["alive"]

    with announce.open_client(server.url) as client:
        asyncio.run(asyncio.wait_for(after_the_lease(client), 60))
    with announce.open_client(server.url) as client:
        deadline = time.monotonic() + 30
        while client.exists(PREFIX + b"b" + chain(3)[2]):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def lease_runs(client, name):
    """Whether the server would still credit the rank."""
    seconds, micros = client.time()
    ranks = client.hgetall(PREFIX + b"ranks")
    tags = [tag for tag, rank in ranks.items() if rank.startswith(name + b" ")]
    ends = [client.zscore(PREFIX + b"leases", tag) for tag in tags]
    return any(end is not None and end >= 1000 * seconds + micros / 1000 - 1 for end in ends)


def unreachable(*arguments):
    raise announce.redis.exceptions.ConnectionError("no route")


def test_everything_is_told_again_after_redis_came_back_empty(server, ranks):
    first, second = ranks("first"), ranks("second")
    first.store(chain(2500))
    second.store(chain(3))
    asyncio.run(until(server, chain(2500), {"first": 2500, "second": 3}))
    with announce.open_client(server.url) as client:
        client.flushall()
    asyncio.run(until(server, chain(2500), {"first": 2500, "second": 3}))
    assert first.shelf.num_snapshots == 0, "the step loop has no part in it"


def test_a_reader_that_lost_events_is_given_a_snapshot(server, ranks):
    rank = ranks("rank")
    rank.shelf = Shelf(capacity=4)
    rank.feed._blocks = rank.shelf
    hashes = chain(20)
    rank.store(hashes)
    rank.shelf.remove(hashes[:14:-1])
    with_snapshot = asyncio.run(publish_until(server, rank, hashes, {"rank": 15}))
    assert with_snapshot
    assert rank.shelf.num_snapshots == 1


async def publish_until(server, rank, hashes, expected):
    """Steps go on: each publishes."""
    async with index_of(server) as index, asyncio.timeout(30):
        while await index.prefixes(hashes) != expected:
            rank.feed.publish()
            await asyncio.sleep(0.01)
        return True


def test_a_rank_that_slept_past_its_lease_comes_back_under_a_new_tag(server, ranks):
    rank = ranks("rank")
    rank.store(chain(3))
    asyncio.run(until(server, chain(3), {"rank": 3}))
    with announce.open_client(server.url) as client:
        [tag] = client.zrange(PREFIX + b"leases", 0, -1)
        client.zadd(PREFIX + b"leases", {tag: 1})
        rank.store(chain(5))
        asyncio.run(until(server, chain(5), {"rank": 5}))
        [new_tag] = client.zrangebyscore(PREFIX + b"leases", 2, "+inf")
    assert new_tag != tag


def test_entries_outlive_their_time_while_their_holder_lives(server, ranks):
    rank = ranks("rank", times=AnnounceTimes(lease_s=1.0, renew_s=0.05, keep_s=1.0))
    rank.store(chain(8))
    asyncio.run(until(server, chain(8), {"rank": 8}))
    with announce.open_client(server.url) as client:
        key = PREFIX + b"b" + chain(8)[4]
        left = client.pttl(key)
        deadline = time.monotonic() + 30
        while client.pttl(key) <= left:
            left = client.pttl(key)
            assert left > 0 and time.monotonic() < deadline
            time.sleep(0.01)


def test_a_stopped_redis_costs_a_lookup_its_budget_and_then_nothing(server):
    async def scenario():
        clock = ManualClock()
        async with index_of(server, budget_s=0.05, clock=clock) as index:
            assert await index.prefixes(chain(2)) == {}
            assert index.counts.answered == 1
            stop_process(server.pid)
            begin = time.monotonic()
            for _ in range(3):
                assert await index.prefixes(chain(2)) == {}
            waited = time.monotonic() - begin
            assert index._breaker.state is BreakerState.OPEN
            sent = index.counts.failures
            assert await index.prefixes(chain(2)) == {}
            assert index.counts.failures == sent, "an open breaker asks nobody"
            assert index.counts.blind == 4
            os.kill(server.pid, signal.SIGCONT)
            clock.advance(1.0)
            # the one attempt of a half-open breaker; a slow machine may need another
            async with asyncio.timeout(30):
                while index._breaker.state is not BreakerState.CLOSED:
                    await index.prefixes(chain(2))
                    clock.advance(1.0)
            return waited

    # three budgets of 50 ms; the client's own limit is half a second each, redis-py's default many seconds
    assert asyncio.run(scenario()) < 1.0


def test_a_stopped_redis_holds_neither_the_step_loop_nor_the_end_of_the_rank(server, ranks):
    rank = ranks("rank")
    rank.store(chain(1))
    asyncio.run(until(server, chain(1), {"rank": 1}))
    stop_process(server.pid)
    begin = time.monotonic()
    for number in range(2, 500):
        rank.store(chain(number))
    rank.announcer.close(10.0)
    assert time.monotonic() - begin < 5.0
    assert not rank.announcer._thread.is_alive()


def test_members_follow_the_leases_and_survive_the_loss_of_redis(server, ranks):
    async def scenario():
        members, seen = Members(), []
        async with index_of(server) as index:
            watching = asyncio.create_task(watch(members, index, seen.append, interval_s=0.02))
            first = ranks("first")
            await until_true(lambda: len(members) == 1)
            ranks("second")
            await until_true(lambda: len(members) == 2)
            await asyncio.to_thread(first.announcer.close, 10.0)
            await until_true(lambda: len(members) == 1)
            stop_process(server.pid)
            asked = index.counts.last_failure
            await until_true(lambda: index.counts.last_failure != asked)
            assert len(members) == 1
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        return [(names(changes.added), names(changes.removed)) for changes in seen]

    expected = [(["first"], []), (["second"], []), ([], ["first"])]
    assert asyncio.run(scenario()) == expected


def names(infos):
    return [info.incarnation for info in infos]


async def until_true(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
