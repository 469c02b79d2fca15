"""Redis servers of others: TLS, passwords, an ACL user with no more than is documented, and what is refused."""

import asyncio
import contextlib
import re
import threading
from pathlib import Path

import pytest
import redis

from baleen import keyspace
from baleen.errors import BaleenError, ConfigError
from baleen.redis_config import RedisConfig
from cluster.redis_check import check_redis
from cluster.status import members
from router.index import MEMBERS_BUDGET_S
from tests.support.announcing import CLUSTER, AnnouncedRank, index_of, until
from tests.support.certificates import Authority
from tests.support.redis_server import DEBIAN_SERVER, SERVERS, RedisServer, chain, free_port, rank_info, wait_for
from workers.cache.announce import AnnounceTimes, open_client

PASSWORD = "s3cr3t-of-the-user"
DOCUMENTED = re.search(r"ACL SETUSER (.*)", (Path(__file__).parents[2] / "docs" / "redis.md").read_text())


def add_user(admin, *, cluster=CLUSTER, more=()):
    """As docs/redis.md says."""
    assert DOCUMENTED is not None
    rules = DOCUMENTED[1].replace("PASSWORD", PASSWORD).replace("{default}", f"{{{cluster}}}")
    admin.execute_command("ACL SETUSER", *rules.split(), *more)


@contextlib.contextmanager
def watched(server, *, db):
    """Names of all commands that anyone sends or a script calls, lower case, and the keys of the database."""
    seen, ready = set(), threading.Event()
    with open_client(server.url, socket_timeout_s=30.0) as client, client.monitor() as monitor:

        def follow():
            ready.set()
            for entry in monitor.listen():
                words = entry["command"].split(" ", 2)
                if words[:2] == ["GET", "end-of-watch"]:
                    return
                if entry["db"] == db:
                    seen.add(words[0].lower())

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        ready.wait()
        try:
            yield seen
        finally:
            with open_client(server.url) as admin:
                admin.get("end-of-watch")
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("program", SERVERS)
def test_a_whole_life_needs_exactly_the_documented_commands_and_keys(program, tmp_path):
    """Announce, look up, renew, remove, clean up, resync: by a user who may do that and nothing else."""
    db = 3
    with RedisServer(program, tmp_path) as server, open_client(server.url) as admin:
        add_user(admin, more=["+select"])
        user = RedisConfig(url=f"redis://baleen:{PASSWORD}@127.0.0.1:{server.port}/{db}")
        with watched(server, db=db) as seen:
            whole_life(user, lambda: admin.execute_command("FLUSHALL"), admin)
        assert admin.acl_log() == [], "nothing was refused"
        assert seen == set(keyspace.COMMANDS) | {"select"}
        assert all(key.startswith(keyspace.key_prefix(CLUSTER)) for key in keys_of(server, db))


def keys_of(server, db):
    with open_client(f"redis://127.0.0.1:{server.port}/{db}") as client:
        return client.keys("*")


def whole_life(config, lose_everything, admin):
    check_redis(config, CLUSTER)
    hashes = chain(6)
    times = AnnounceTimes(lease_s=5.0, renew_s=0.05)
    staying, leaving = AnnouncedRank(config, "staying", times=times), AnnouncedRank(config, "leaving", times=times)
    try:
        staying.store(hashes[:4])
        leaving.store(hashes)
        asyncio.run(until(config, hashes, {"staying": 4, "leaving": 6}))
        leaving.remove(hashes[:4:-1])
        asyncio.run(until(config, hashes, {"staying": 4, "leaving": 5}))
        admin.script_flush()
        lose_everything()
        asyncio.run(until(config, hashes, {"staying": 4, "leaving": 5}))
        leaving.close()
        asyncio.run(until(config, hashes, {"staying": 4}))
        # whoever stays takes out what the other left
        held = keyspace.key_prefix(CLUSTER) + b"b" + hashes[4]
        with open_client(config) as client:
            wait_for(lambda: client.mget(held) == [None])

        async def members():
            async with index_of(config) as index:
                return await index.members()

        assert set(asyncio.run(members())) == {"staying"}
    finally:
        staying.close()
        leaving.close()


@pytest.mark.parametrize("program", SERVERS)
def test_a_user_of_one_cluster_reaches_no_other(program, tmp_path):
    with RedisServer(program, tmp_path) as server, open_client(server.url) as admin:
        add_user(admin)
        user = RedisConfig(url=f"redis://baleen:{PASSWORD}@127.0.0.1:{server.port}")
        check_redis(user, CLUSTER)
        with pytest.raises(ConfigError, match=r"its user may not do what docs/redis\.md lists"):
            check_redis(user, "other")


@pytest.mark.parametrize("program", [DEBIAN_SERVER])
def test_tls_with_client_certificate_and_acl_user(program, tmp_path, monkeypatch):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    own, client = authority.issue("server", "localhost"), authority.issue("client")
    monkeypatch.setenv("BALEEN_TEST_PASSWORD", PASSWORD)
    with RedisServer(
        program,
        tmp_path,
        port="0",
        tls_port="{port}",
        tls_cert_file=str(own.cert_file),
        tls_key_file=str(own.key_file),
        tls_ca_cert_file=str(authority.ca_file),
        user=f"default on >{PASSWORD} ~* &* +@all",
    ) as server:

        def config(host="localhost", **changes):
            files = {
                "ca_file": str(authority.ca_file),
                "cert_file": str(client.cert_file),
                "key_file": str(client.key_file),
            }
            url = f"rediss://{host}:{server.port}/1"
            return RedisConfig(**{"url": url, "password_env": "BALEEN_TEST_PASSWORD", **files, **changes})

        with open_client(config()) as admin:
            add_user(admin, more=["+select"])
            whole_life(config(username="baleen"), admin.flushall, admin)
        for wrong, cause in [
            (config(ca_file=str(stranger.ca_file)), "certificate verify failed"),
            (config(ca_file=""), "certificate verify failed"),
            (config(host="127.0.0.1"), "certificate is not valid for '127.0.0.1'"),
            (config(cert_file="", key_file=""), ""),
            (config(ca_file=str(tmp_path / "absent.pem")), "No such file"),
            (RedisConfig(url=f"redis://127.0.0.1:{server.port}"), ""),
        ]:
            with pytest.raises(BaleenError, match=f"redis rediss?://.* cannot be reached: .*{cause}"):
                check_redis(wrong, CLUSTER)
            failure = asyncio.run(failure_of(wrong))
            assert cause in failure and PASSWORD not in failure
        with pytest.raises(ConfigError, match="refuses the user or password"):
            check_redis(config(username="nobody"), CLUSTER)


async def failure_of(config):
    async with index_of(config) as index:
        assert await index.prefixes(chain(1)) == {}
        assert await index.members() is None
        return index.counts.last_failure


def test_people_wait_longer_for_a_slow_redis_than_a_router_does(tmp_path):
    [program] = SERVERS[0].values
    with RedisServer(program, tmp_path) as server, open_client(server.url) as admin:
        rank = AnnouncedRank(server.url, "slow", times=AnnounceTimes(lease_s=30.0, renew_s=0.1))
        try:
            wait_for(lambda: asyncio.run(members(CLUSTER, RedisConfig(url=server.url))))
            admin.execute_command("CLIENT PAUSE", int(2000 * MEMBERS_BUDGET_S), "ALL")
            assert asyncio.run(members(CLUSTER, RedisConfig(url=server.url))) == {"slow": rank_info("slow")}
        finally:
            rank.close()


def test_a_password_may_be_replaced_while_ranks_run_and_is_in_no_log(tmp_path):
    [program] = SERVERS[0].values
    path = tmp_path / "password"
    path.write_text("the-first\n")
    with RedisServer(program, tmp_path, requirepass="the-first") as server:
        config = RedisConfig(url=server.url, password_file=str(path))
        rank = AnnouncedRank(config, "rank")
        try:
            rank.store(chain(2))
            asyncio.run(until(config, chain(2), {"rank": 2}))
            with open_client(f"redis://:the-first@127.0.0.1:{server.port}") as admin:
                admin.config_set("requirepass", "the-second")
                admin.client_kill_filter(_type="normal", skipme=True)
            wait_for(lambda: any("cannot be reached" in line for line in rank.lines))
            path.write_text("the-second\n")
            rank.store(chain(3))
            asyncio.run(until(config, chain(3), {"rank": 3}))
        finally:
            rank.close()
        text = "".join(rank.lines)
        assert "the-first" not in text and "the-second" not in text


def test_a_check_leaves_nothing_that_anyone_could_see(tmp_path):
    [program] = SERVERS[0].values
    with RedisServer(program, tmp_path) as server, open_client(server.url) as client:
        check_redis(RedisConfig(url=server.url), CLUSTER)
        assert client.keys("*") == []


@pytest.mark.parametrize("program", SERVERS)
def test_servers_that_cannot_serve_are_named(program, tmp_path):
    with (
        RedisServer(program, tmp_path, replicaof=f"127.0.0.1 {free_port()}") as replica,
        pytest.raises(ConfigError, match="it is a replica, must be the primary"),
    ):
        check_redis(RedisConfig(url=replica.url), CLUSTER)
    with RedisServer(program, tmp_path, requirepass=PASSWORD) as closed:
        for url in (closed.url, f"redis://:wrong@127.0.0.1:{closed.port}"):
            with pytest.raises(ConfigError, match="refuses the user or password"):
                check_redis(RedisConfig(url=url), CLUSTER)
        with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE, which is not set"):
            check_redis(RedisConfig(url=closed.url, password_env="NO_SUCH_VARIABLE"), CLUSTER)
    with pytest.raises(BaleenError, match="cannot be reached"):
        check_redis(RedisConfig(url=closed.url), CLUSTER)


@pytest.mark.parametrize("program", SERVERS)
def test_sentinels_are_named(program, tmp_path):
    with (
        RedisServer(program, tmp_path, "--sentinel", sentinel="monitor main 127.0.0.1 1 1") as sentinel,
        pytest.raises(ConfigError, match="a Sentinel"),
    ):
        check_redis(RedisConfig(url=sentinel.url), CLUSTER)


@pytest.mark.slow
@pytest.mark.parametrize("program", SERVERS)
def test_a_node_of_a_redis_cluster_is_named(program, tmp_path):
    """Two nodes that know each other; ours owns none of the slots."""
    with contextlib.ExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            settings = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
            server = stack.enter_context(RedisServer(program, folder, **settings))
            clients.append((stack.enter_context(open_client(server.url)), server, settings["cluster_port"]))
        (one, first, _), (two, second, bus) = clients
        two.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        one.execute_command("CLUSTER MEET", "127.0.0.1", second.port, bus)
        wait_for(lambda: one.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        with pytest.raises(ConfigError, match="it belongs to a Redis Cluster, must be one server"):
            check_redis(RedisConfig(url=first.url), CLUSTER)


def test_the_documented_commands_are_those_in_use():
    assert DOCUMENTED is not None
    words = DOCUMENTED[1].split()
    assert [word[1:] for word in words if word.startswith("+")] == list(keyspace.COMMANDS)
    assert f"~{keyspace.key_pattern('default')}" in words


def test_a_url_alone_is_a_configuration(tmp_path):
    [program] = SERVERS[0].values
    with RedisServer(program, tmp_path) as server, open_client(server.url) as client:
        assert isinstance(client, redis.Redis) and client.ping()
