"""Files of accounts: what they let be changed, by whom, and which ones are read."""

import asyncio
import sqlite3
from dataclasses import replace

import pytest

from baleen.errors import ConfigError
from router.gateway.accounts.money import Usage
from router.gateway.accounts.records import Key
from router.gateway.accounts.schema import APPLICATION_ID, MIGRATIONS
from router.gateway.accounts.sqlite_store import SqliteStore
from tests.support.accounts_bench import WALL, Bench, opened


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_the_ledger_cannot_be_changed(bench):
    async def run():
        gateway = bench.gateway()
        await gateway.start()
        (await opened(gateway, None, 0)).settle(Usage(), "finished")
        await gateway.close()

    asyncio.run(run())
    connection = sqlite3.connect(bench.path)
    for statement in ("UPDATE ledger SET cost = 0", "DELETE FROM ledger"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_files_that_are_no_accounts_of_ours_are_refused(tmp_path):
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE things (a)")
    other.commit()
    other.close()
    with pytest.raises(ConfigError, match="something else"):
        SqliteStore(tmp_path / "other.db")
    (tmp_path / "text").write_text("no database at all, but long enough to be taken for one" * 50)
    with pytest.raises(ConfigError, match="not a database"):
        SqliteStore(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot be opened"):
        SqliteStore(tmp_path)


def test_a_file_of_a_newer_version_is_left_alone(bench):
    bench.in_store(lambda store: None)
    connection = sqlite3.connect(bench.path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="newer baleen"):
        bench.in_store(lambda store: None)


def test_a_file_of_the_first_version_is_brought_up(tmp_path):
    path = tmp_path / "accounts.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in MIGRATIONS[0]:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute("INSERT INTO keys VALUES ('k', x'00', 't', 'old', 1.0, NULL, NULL, '[\"m\"]', 1, NULL, 3, 50)")
    connection.close()
    for _ in range(2):
        store = SqliteStore(path)
        (key,) = store.all_keys()
        assert (key.name, key.models, key.requests_per_minute, key.concurrency) == ("old", ("m",), 1, 3)
        assert (key.is_operator, store.balance("k")) == (False, 50)
        store.close()


def test_accounts_are_for_their_owner_only(bench):
    bench.in_store(lambda store: None)
    assert [path.stat().st_mode & 0o077 for path in bench.path.parent.iterdir()] == [0] * len(
        list(bench.path.parent.iterdir())
    )


def test_keys_out_of_range_are_refused_by_name():
    good = Key(key_id="a", digest=b"", tenant="t", created_at=WALL)
    for change, said in (
        ({"tenant": ""}, "tenant is ''"),
        ({"tenant": "a:b"}, "tenant is 'a:b'"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0, must be from 1"),
        ({"tokens_per_minute": 10**10}, "tokens_per_minute is 10000000000, must be from 1 to 1000000000"),
        ({"concurrency": -1}, "concurrency is -1"),
        ({"expires_at": WALL}, "must be after"),
        ({"models": ("A",)}, "lower case"),
        ({"models": ("a b",)}, "must be the name of one"),
        ({"name": "a\nb"}, "printable"),
    ):
        with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
            replace(good, **change)
