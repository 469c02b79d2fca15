"""Redis is lost, stopped, slow, full, read-only, closed or spoiled: lookups go on in time, and all is found again."""

import asyncio
import contextlib
import json
import threading
import time

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen import keyspace
from baleen.clock import SystemClock
from router.index import LOOKUP_BUDGET_S
from tests.support.announcing import CLUSTER, AnnouncedRank, index_of, until
from tests.support.redis_server import SERVERS, RedisServer, chain, free_port, rank_info, wait_for
from workers.cache.announce import AnnounceTimes, open_client

PREFIX = keyspace.key_prefix(CLUSTER)
HASHES = chain(300)
DEPTHS = {"long": 300, "short": 20}
TIMES = AnnounceTimes(lease_s=1.0, renew_s=0.1, keep_s=4.0)
NUM_LOOKUPS = 20


class Fault:
    """What happens to a server, and how it ends."""

    def __init__(self, server):
        self.server = server

    def begin(self):
        """Let it happen; returns once it has."""

    def end(self):
        pass

    def admin(self):
        return open_client(self.server.url, socket_timeout_s=30.0)


class Killed(Fault):
    """SIGKILL; comes back empty."""

    def begin(self):
        self.server.kill()

    def end(self):
        self.server.start()


class Stopped(Fault):
    """SIGSTOP."""

    def begin(self):
        self.server.stop()

    def end(self):
        self.server.resume()


class Full(Fault):
    """No memory, and no leave to evict."""

    def begin(self):
        with self.admin() as admin:
            admin.config_set("maxmemory", "1")

    def end(self):
        with self.admin() as admin:
            admin.config_set("maxmemory", "0")


class Evicting(Full):
    """No memory, and every key may have to go."""

    def begin(self):
        with self.admin() as admin:
            admin.config_set("maxmemory-policy", "allkeys-random")
        super().begin()


class Replica(Fault):
    """Read-only, of a primary that nobody reaches."""

    def begin(self):
        with self.admin() as admin:
            admin.replicaof("127.0.0.1", free_port())

    def end(self):
        with self.admin() as admin:
            admin.replicaof("no", "one")


class Closed(Fault):
    """Wants another password than it did."""

    def begin(self):
        with self.admin() as admin:
            admin.config_set("requirepass", "another")
            admin.client_kill_filter(_type="normal", skipme=True)

    def end(self):
        with open_client(f"redis://:another@127.0.0.1:{self.server.port}") as admin:
            admin.config_set("requirepass", "")


class Spoiled(Fault):
    """Every key is of a type that no baleen writes; nobody repairs it."""

    def begin(self):
        with self.admin() as admin:
            for key in admin.keys("*"):
                kind = admin.type(key)
                with admin.pipeline() as both:
                    both.delete(key)
                    both.rpush(key, "rubbish") if kind == b"string" else both.set(key, "rubbish")
                    both.execute()


class Slow(Fault):
    """Answers each client after a second of others' work."""

    def begin(self):
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        wait_for(lambda: self._busy)

    def end(self):
        self._over.set()
        self._thread.join(30)

    _busy = False

    def _work(self):
        script = "local t = redis.call('TIME') while redis.call('TIME')[1] - t[1] < 1 do end"
        with self.admin() as admin:
            while not self._over.is_set():
                self._busy = True
                admin.eval(script, 0)


@contextlib.contextmanager
def announced(server, times=TIMES):
    """Two ranks with a prefix in common."""
    ranks = [AnnouncedRank(server.url, name, times=times) for name in DEPTHS]
    try:
        for rank, depth in zip(ranks, DEPTHS.values(), strict=True):
            rank.store(HASHES[:depth])
        asyncio.run(until(server.url, HASHES, DEPTHS))
        yield ranks
    finally:
        for rank in ranks:
            rank.close()


@pytest.mark.parametrize("kind", [Killed, Stopped, Full, Evicting, Replica, Closed, Spoiled, Slow])
@pytest.mark.parametrize("program", SERVERS)
def test_lookups_go_on_in_time_and_everything_is_found_again(program, kind, tmp_path):
    with RedisServer(program, tmp_path) as server, announced(server):
        fault = kind(server)
        waited, found = asyncio.run(lookups_during(fault))
        for answer in found:
            assert all(depth <= DEPTHS[name] for name, depth in answer.items())
        # three budgets until the breaker opens, and one for each second after; the machine may be slow
        assert waited < NUM_LOOKUPS * LOOKUP_BUDGET_S + 3.0
        asyncio.run(until(server.url, HASHES, DEPTHS, timeout_s=60.0))


async def lookups_during(fault):
    async with index_of(fault.server.url, budget_s=LOOKUP_BUDGET_S, clock=SystemClock()) as index:
        async with asyncio.timeout(30):
            # a busy machine may miss a budget
            while await index.prefixes(HASHES) != DEPTHS:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.to_thread(fault.begin)
        try:
            begin = time.monotonic()
            found = [await index.prefixes(HASHES) for _ in range(NUM_LOOKUPS)]
            waited = time.monotonic() - begin
        finally:
            await asyncio.to_thread(fault.end)
        return waited, found


@pytest.mark.parametrize("program", SERVERS)
def test_a_spoiled_reverse_index_does_not_keep_news_out(program, tmp_path):
    """The lease can still be renewed: only announcing fails."""
    times = AnnounceTimes(lease_s=60.0, renew_s=0.1)
    with RedisServer(program, tmp_path) as server, announced(server, times) as ranks, open_client(server.url) as admin:
        for key in admin.keys(PREFIX + b"held:*"):
            with admin.pipeline() as both:
                both.delete(key)
                both.set(key, "rubbish")
                both.execute()
        ranks[1].store(HASHES[:30])
        asyncio.run(until(server.url, HASHES, {"long": 300, "short": 30}))


@pytest.mark.parametrize("program", SERVERS)
def test_an_old_dump_with_living_leases_is_found_out(program, tmp_path):
    times = AnnounceTimes(lease_s=60.0, renew_s=0.1)
    with RedisServer(program, tmp_path, dbfilename="dump.rdb") as server, announced(server, times) as ranks:
        with open_client(server.url) as admin:
            admin.save()
        long, short = ranks
        long.remove(HASHES[:99:-1])
        short.store(HASHES[:30])
        now = {"long": 100, "short": 30}
        asyncio.run(until(server.url, HASHES, now))
        server.kill()
        server.start()
        asyncio.run(until(server.url, HASHES, now))


@pytest.mark.parametrize("program", SERVERS[:1])
def test_a_connection_that_takes_longer_than_the_budget_is_had_in_the_end(program, tmp_path):
    async def scenario(server):
        """Between router and server lies a line on which every connection takes three budgets to begin."""

        async def carry(reader, writer):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)
                writer.close()

        async def connected(reader, writer):
            await asyncio.sleep(3 * LOOKUP_BUDGET_S)
            there, back = await asyncio.open_connection("127.0.0.1", server.port)
            await asyncio.gather(carry(reader, back), carry(there, writer))

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as line:
            port = line.sockets[0].getsockname()[1]
            url = f"redis://127.0.0.1:{port}/0"
            async with index_of(url, budget_s=LOOKUP_BUDGET_S, clock=SystemClock()) as index, asyncio.timeout(30):
                assert await index.prefixes(HASHES) == {}
                assert index.counts.failures == 1
                while await index.prefixes(HASHES) != DEPTHS:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    with RedisServer(program, tmp_path) as server, announced(server):
        asyncio.run(scenario(server))


@pytest.mark.parametrize("program", SERVERS[:1])
def test_a_late_answer_is_never_taken_for_that_to_another_question(program, tmp_path):
    async def scenario(server):
        async with index_of(server.url, budget_s=0.002, clock=SystemClock()) as index, asyncio.timeout(60):
            right = wrong = number = 0
            while number < 300 or right < 20:
                number += 1
                length = 1 + number * 7 % 300
                found = await index.prefixes(HASHES[:length])
                right += found == {name: min(depth, length) for name, depth in DEPTHS.items()}
                wrong += bool(found) and found != {name: min(depth, length) for name, depth in DEPTHS.items()}
                if number % 50 == 0:
                    # those behind wait longer than the budget
                    await asyncio.to_thread(admin.eval, "for i = 1, 50000 do redis.call('TIME') end", 0)
            return wrong

    with RedisServer(program, tmp_path) as server, announced(server), Fault(server).admin() as admin:
        assert asyncio.run(scenario(server)) == 0


tags = st.sampled_from([b"aaaa", b"bbbb", b"cccc"]) | st.binary(min_size=4, max_size=4)
entries = st.lists(tags, max_size=20).map(b"".join) | st.binary(max_size=9)
leases = st.dictionaries(tags, st.floats(allow_nan=False), max_size=5)
infos = st.builds(
    lambda name, number, text: (
        f"{name} {json.dumps({**INFO, 'incarnation': name, 'vocab_size': number, 'pool': text})}"
    ),
    st.sampled_from(["a", "b", "\N{WHALE}"]),
    st.integers() | st.text(max_size=3) | st.none(),
    st.text(max_size=3) | st.integers(),
).map(str.encode)
INFO = json.loads(keyspace.encode_info(rank_info("x")))


@pytest.fixture(scope="module")
def rubbish_server(tmp_path_factory):
    [program] = SERVERS[0].values
    with RedisServer(program, tmp_path_factory.mktemp("redis")) as server:
        yield server


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(entries, min_size=1, max_size=12),
    leases=leases,
    ranks=st.dictionaries(tags, infos | st.binary(max_size=9), max_size=5),
)
def test_whatever_stands_in_redis_a_lookup_gives_numbers_that_make_sense(rubbish_server, blocks, leases, ranks):
    hashes = HASHES[: len(blocks)]
    with open_client(rubbish_server.url) as client:
        client.flushall()
        for block_hash, entry in zip(hashes, blocks, strict=True):
            client.set(PREFIX + b"b" + block_hash, entry)
        if leases:
            client.zadd(PREFIX + b"leases", leases)
        if ranks:
            client.hset(PREFIX + b"ranks", mapping=ranks)

    async def ask():
        async with index_of(rubbish_server.url) as index:
            found, members = await index.prefixes(hashes), await index.members()
            assert index.counts.failures == 0, index.counts.last_failure
            return found, members

    found, members = asyncio.run(ask())
    assert all(1 <= depth <= len(hashes) and isinstance(name, str) for name, depth in found.items())
    assert members is not None
    assert all(info.incarnation == name and info.vocab_size >= 0 for name, info in members.items())


def test_a_redis_of_rubbish_is_no_error_of_the_client(rubbish_server):
    """The check of the test above: errors of scripts would count as failures."""
    with open_client(rubbish_server.url) as client:
        client.flushall()
        client.set(PREFIX + b"leases", "rubbish")
        with pytest.raises(redis.ResponseError):
            client.eval(keyspace.MEMBERS.source, 1, PREFIX)
