"""The scripts on real servers: leases, fencing, prefixes, clean-up, and the commands that they need."""

import random
import secrets

import pytest
import redis

from baleen import keyspace
from baleen.ids import Incarnation
from cluster.embedded import EmbeddedRedis
from tests.support.redis_server import SERVERS, chain, rank_info, wait_for
from workers.cache.announce import open_client

PREFIX = keyspace.key_prefix("test")
KEEP_MS = 60_000


@pytest.fixture(scope="module", params=SERVERS)
def server(request):
    with EmbeddedRedis(program=request.param, tcp=True) as server:
        yield server


@pytest.fixture
def client(server):
    with open_client(server.url) as client:
        client.flushall()
        yield client


class Writer:
    """One life of a lease, written call by call."""

    def __init__(self, client, name, *, lease_ms=60_000):
        self.client, self.name, self.lease_ms = client, name, lease_ms
        self.tag = secrets.token_bytes(keyspace.TAG_BYTES)
        self.serial = 0

    def call(self, script, *arguments):
        return self.client.eval(script.source, 1, PREFIX, *arguments)

    def register(self, old_tag=b""):
        info = keyspace.encode_info(rank_info(self.name))
        return self.call(keyspace.REGISTER, self.tag, old_tag, self.name, info, self.lease_ms, KEEP_MS)

    def renew(self):
        return self.tell(keyspace.RENEW, self.lease_ms, KEEP_MS)

    def release(self):
        return self.call(keyspace.RELEASE, self.tag, self.name)

    def announce(self, stored=(), removed=()):
        packed = keyspace.pack_hashes(stored), keyspace.pack_hashes(removed)
        return self.tell(keyspace.ANNOUNCE, KEEP_MS, *packed)

    def tell(self, script, *arguments):
        self.serial += 1
        return self.call(script, self.tag, self.name, self.serial, *arguments)


def registered(client, name, **options):
    writer = Writer(client, name, **options)
    assert writer.register() == 1
    return writer


def lookup(client, hashes):
    return keyspace.decode_prefixes(client.eval(keyspace.LOOKUP.source, 1, PREFIX, keyspace.pack_hashes(hashes)))


def members(client):
    return keyspace.decode_members(client.eval(keyspace.MEMBERS.source, 1, PREFIX))


def test_a_prefix_is_found_for_each_rank_that_holds_it(client):
    long, short = registered(client, "long"), registered(client, "short")
    hashes = chain(9)
    assert lookup(client, hashes) == {}
    long.announce(hashes[:7])
    short.announce(hashes[:2])
    assert lookup(client, hashes) == {"long": 7, "short": 2}
    assert lookup(client, hashes[:1]) == {"long": 1, "short": 1}
    assert lookup(client, chain(9, first_token=1)) == {}
    assert lookup(client, []) == {}
    long.announce(removed=hashes[3:7])
    assert lookup(client, hashes) == {"long": 3, "short": 2}


@pytest.mark.parametrize("seed", range(4))
def test_a_lookup_equals_a_walk_along_the_chain(client, seed):
    chance = random.Random(seed)
    hashes = chain(70)
    depths = {f"rank{number}": chance.choice([0, 1, 2, 31, 69, 70, chance.randrange(70)]) for number in range(12)}
    for name, depth in depths.items():
        registered(client, name).announce(hashes[:depth])
    for length in (1, 2, 3, 64, 70):
        expected = {name: min(depth, length) for name, depth in depths.items() if depth}
        assert lookup(client, hashes[:length]) == expected


def test_tags_that_look_alike_are_told_apart(client):
    """In the entry of the first two stands, across their border, the tag of the third."""
    tags = [b"\0\0\1\1", b"\2\2\0\0", b"\1\1\2\2", b"\1\1\1\1", b"\0\0\0\0"]
    writers = [Writer(client, f"rank{number}") for number in range(len(tags))]
    hashes = chain(40)
    for number, (writer, tag) in enumerate(zip(writers, tags, strict=True)):
        writer.tag = tag
        assert writer.register() == 1
        writer.announce(hashes[: 40 - 9 * number])
    expected = {writer.name: 40 - 9 * number for number, writer in enumerate(writers)}
    assert lookup(client, hashes) == expected
    writers[2].announce(removed=hashes[:22])
    del expected["rank2"]
    assert lookup(client, hashes) == expected


def test_a_block_names_at_most_its_limit_of_ranks_and_deeper_blocks_name_the_others(client):
    hashes = chain(3)
    for number in range(keyspace.MOST_HOLDERS + 5):
        registered(client, f"rank{number}").announce(hashes[:1])
    late = registered(client, "late")
    late.announce(hashes)
    assert client.strlen(PREFIX + b"b" + hashes[0]) == keyspace.MOST_HOLDERS * keyspace.TAG_BYTES
    found = lookup(client, hashes)
    assert found["late"] == 3, "named by the blocks that few hold"
    assert len(found) == keyspace.MOST_HOLDERS + 1


def test_a_full_block_makes_room_by_forgetting_the_dead(client):
    hashes = chain(1)
    writers = [registered(client, f"rank{number}") for number in range(keyspace.MOST_HOLDERS)]
    for writer in writers:
        writer.announce(hashes)
    writers[0].release()
    registered(client, "new").announce(hashes)
    assert "new" in lookup(client, hashes)
    assert "rank0" not in lookup(client, hashes)


def test_news_of_a_life_without_lease_are_refused(client):
    hashes = chain(4)
    never = Writer(client, "never")
    assert never.announce(hashes) == 0
    assert never.renew() == 0
    assert lookup(client, hashes) == {}
    released = registered(client, "released")
    released.announce(hashes)
    assert released.release() == 1
    assert lookup(client, hashes) == {}
    assert released.announce(hashes) == 0
    assert released.renew() == 0
    assert lookup(client, hashes) == {}
    assert members(client) == {}


def test_a_lease_that_ran_out_is_credited_no_more_and_cannot_be_renewed(client):
    hashes = chain(4)
    writer = registered(client, "brief", lease_ms=30)
    wait_for(lambda: members(client) == {})
    assert lookup(client, hashes) == {}
    assert writer.renew() == 0
    assert writer.announce(hashes) == 0
    assert client.exists(PREFIX + b"b" + hashes[0]) == 0


def test_a_new_life_is_not_credited_with_what_the_old_one_held(client):
    hashes = chain(4)
    old = registered(client, "rank")
    old.announce(hashes)
    new = Writer(client, "rank")
    assert new.register(old_tag=old.tag) == 1
    assert lookup(client, hashes) == {}
    assert old.announce(hashes) == 0, "late news of the old life"
    new.announce(hashes[:1])
    assert lookup(client, hashes) == {"rank": 1}


def test_a_rank_learns_that_its_last_news_are_missing(client):
    """As after a restart with an old dump, or a replica that lagged behind became the primary."""
    hashes = chain(4)
    writer = registered(client, "rank")
    writer.announce(hashes)
    dump = {key: (client.dump(key), client.pttl(key)) for key in client.keys("*")}
    writer.announce(removed=hashes[2:])
    assert writer.renew() == 1
    client.flushall()
    for key, (value, left) in dump.items():
        client.restore(key, left, value)
    assert lookup(client, hashes) == {"rank": 4}, "what is no more true"
    assert writer.renew() == writer.announce(hashes[:1]) == 0
    new = Writer(client, "rank")
    assert new.register(old_tag=writer.tag) == 1
    new.announce(hashes[:2])
    assert lookup(client, hashes) == {"rank": 2}


def test_news_whose_arrival_was_not_heard_of_may_be_told_again(client):
    hashes = chain(3)
    writer = registered(client, "rank")
    assert writer.announce(hashes[:1]) == 1
    writer.serial -= 1
    assert writer.announce(hashes) == 1
    assert lookup(client, hashes) == {"rank": 3}


def test_keys_of_other_types_make_room(client):
    hashes = chain(2)
    dead = registered(client, "dead")
    dead.announce(hashes)
    dead.release()
    for key in client.keys("*"):
        client.delete(key)
        client.rpush(key, "rubbish")
    writer = registered(client, "rank")
    writer.announce(hashes)
    assert lookup(client, hashes) == {"rank": 2}
    dead = registered(client, "dead")
    dead.announce(hashes[:1])
    dead.release()
    held = PREFIX + b"held:" + dead.tag
    client.delete(held)
    client.set(held, "rubbish")
    assert [client.eval(keyspace.CLEAN.source, 1, PREFIX, 4) for _ in range(2)] == [0, -1]
    assert lookup(client, hashes) == {"rank": 2}


def test_a_tag_in_use_is_not_given_again_even_after_a_flush_by_another_rank(client):
    first, second = registered(client, "first"), Writer(client, "second")
    second.tag = first.tag
    assert second.register() == 0
    client.flushall()
    assert second.register() == 1
    assert first.renew() == 0
    assert first.announce(chain(1)) == 0
    assert lookup(client, chain(1)) == {}


def test_members_are_those_with_a_lease_as_they_described_themselves(client):
    assert members(client) == {}
    registered(client, "a")
    registered(client, "b")
    assert members(client) == {Incarnation(name): rank_info(name) for name in ("a", "b")}


def test_cleaning_takes_the_dead_out_of_every_block_and_nobody_else(client):
    hashes = chain(6)
    dead, alive = registered(client, "dead"), registered(client, "alive")
    dead.announce(hashes)
    alive.announce(hashes[:2])
    assert client.eval(keyspace.CLEAN.source, 1, PREFIX, 4) == -1
    dead.release()
    counts = [client.eval(keyspace.CLEAN.source, 1, PREFIX, 4) for _ in range(3)]
    assert counts == [4, 2, -1]
    assert client.get(PREFIX + b"b" + hashes[0]) == alive.tag
    assert client.exists(*(PREFIX + b"b" + block_hash for block_hash in hashes[2:])) == 0
    assert lookup(client, hashes) == {"alive": 2}
    assert client.zrange(PREFIX + b"leases", 0, -1) == [alive.tag]
    assert client.hkeys(PREFIX + b"ranks") == [alive.tag]
    assert client.exists(PREFIX + b"held:" + dead.tag) == 0


def test_every_key_has_a_time_to_live_and_holds_no_tokens(client):
    hashes = chain(3)
    first, second = registered(client, "a"), registered(client, "b")
    first.announce(hashes)
    second.announce(hashes)
    first.renew()
    first.announce(removed=hashes[2:])
    keys = client.keys("*")
    assert len(keys) == 3 + 2 + 3
    assert all(0 < client.pttl(key) <= 2 * KEEP_MS for key in keys)
    assert all(len(client.get(PREFIX + b"b" + block_hash)) <= 8 for block_hash in hashes)


def test_the_listed_commands_are_enough_and_each_is_needed(client, server):
    def user(commands):
        client.acl_setuser(
            "baleen",
            enabled=True,
            passwords=["+secret"],
            keys=[keyspace.key_pattern("test")],
            reset=True,
            commands=[f"+{command}" for command in commands],
        )
        return open_client(f"redis://baleen:secret@{server.url.rpartition('@')[2]}")

    def use(allowed):
        client.flushall()
        client.script_flush()
        hashes = chain(3)
        writer = Writer(allowed, "a")
        with pytest.raises(redis.exceptions.NoScriptError):
            allowed.evalsha(keyspace.LOOKUP.sha, 1, PREFIX, b"")
        writer.register()
        writer.renew()
        writer.announce(hashes)
        writer.announce(hashes[:1], hashes[1:])
        second = Writer(allowed, "b")
        second.register()
        second.announce(hashes)
        writer.announce(removed=hashes[:1])
        assert lookup(allowed, hashes) == {"b": 3}
        assert set(members(allowed)) == {"a", "b"}
        again = Writer(allowed, "a")
        again.register(old_tag=writer.tag)
        again.release()
        second.release()
        while allowed.eval(keyspace.CLEAN.source, 1, PREFIX, 10) >= 0:
            pass
        assert allowed.evalsha(keyspace.LOOKUP.sha, 1, PREFIX, b"") == []

    with user(keyspace.COMMANDS) as allowed:
        use(allowed)
    for left_out in keyspace.COMMANDS:
        with (
            user([command for command in keyspace.COMMANDS if command != left_out]) as refused,
            pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.ResponseError)),
        ):
            use(refused)
