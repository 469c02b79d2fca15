"""Accounts in an event loop: checks of keys, reservations that always end, totals that agree with the counters."""

import asyncio
import sqlite3
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from baleen.accounts_config import PriceConfig
from baleen.errors import ConfigError, NotReady
from baleen.exposition import Samples
from baleen.telemetry import Log
from router.gateway.accounts import accounts as accounts_module
from router.gateway.accounts.accounts import KEYS_FRESH_S, Accounts
from router.gateway.accounts.money import PICO, PriceList, Usage
from router.gateway.accounts.records import Key, Refused
from router.gateway.accounts.schema import APPLICATION_ID, MIGRATIONS
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore
from tests.support.clock import ManualClock

PRICES = PriceList([PriceConfig(model="m", input_hit="0.028", input_miss="0.28", output="0.42")])
WALL = 1_770_000_000.0
DAYS = {"first_day": "0000-00-00", "last_day": "9999-99-99"}


class Exposed(CollectorRegistry):
    """What a scrape of one gateway finds of its accounts."""

    def __init__(self, gateway):
        super().__init__()
        self.register(Samples("gateway", gateway.samples))


class Bench:
    """A database, a clock, and as many gateways on it as a test wants."""

    def __init__(self, folder):
        self.path = folder / "accounts.db"
        self.clock = ManualClock()
        self.wall_s = WALL
        self.lines = []
        self.said = asyncio.Event()

    def gateway(self):
        def write(line):
            self.lines.append(line)
            self.said.set()

        log = Log("info", write=write)
        return Accounts(self.path, PRICES, clock=self.clock, log=log, wall=lambda: self.wall_s)

    def add_key(self, *, balance=None, **limits):
        secret = new_secret()
        key = Key(
            key_id=key_id(secret),
            digest=digest(secret),
            tenant="t",
            created_at=WALL,
            has_balance=balance is not None,
            **limits,
        )
        store = SqliteStore(self.path)
        store.add_key(key, balance=balance)
        store.close()
        return secret, key

    def in_store(self, call):
        store = SqliteStore(self.path)
        try:
            return call(store)
        finally:
            store.close()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def opened(gateway, key, number, *, prompt=10, output=20):
    return await gateway.open(
        key, request_id=f"r{number}", model="m", served_as="m", prompt_tokens=prompt, output_tokens=output
    )


def reason_of(error_info):
    return error_info.value.reason


def test_a_good_key_is_known_and_all_others_are_refused_alike(bench):
    secret, key = bench.add_key()
    stranger = new_secret()
    forged = secret[:23] + stranger[23:]

    async def run():
        gateway = bench.gateway()
        assert await gateway.start() == 1
        assert await gateway.authenticate([secret]) == key
        assert await gateway.authenticate([secret, secret]) == key
        texts = set()
        for bad in ([stranger], [forged], ["x"], [""], [secret[:-1]], ["' OR 1=1 --"]):
            with pytest.raises(Refused) as caught:
                await gateway.authenticate(bad)
            assert caught.value.status == 401
            texts.add(str(caught.value))
        assert len(texts) == 1
        for bad in ([], [secret, stranger]):
            with pytest.raises(Refused) as caught:
                await gateway.authenticate(bad)
            assert caught.value.status == 401
        assert gateway.meters.refused["key"] == 8
        await gateway.close()

    asyncio.run(run())


def test_a_revoked_key_is_refused_in_every_gateway_within_a_second(bench):
    secret, key = bench.add_key()

    async def run():
        gateways = [bench.gateway(), bench.gateway()]
        for gateway in gateways:
            await gateway.start()
            await gateway.authenticate([secret])
        bench.in_store(lambda store: store.revoke(key.key_id, wall_s=WALL))
        # to begin a request the store itself is asked
        with pytest.raises(Refused):
            await opened(gateways[0], key, 0)
        bench.clock.advance(KEYS_FRESH_S)
        for gateway in gateways:
            with pytest.raises(Refused) as caught:
                await gateway.authenticate([secret])
            assert reason_of(caught) == "key"
            await gateway.close()

    assert KEYS_FRESH_S <= 5
    asyncio.run(run())


def test_a_key_ends_when_it_expires(bench):
    secret, _ = bench.add_key(expires_at=WALL + 10)

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        await gateway.authenticate([secret])
        bench.wall_s += 10
        with pytest.raises(Refused) as caught:
            await gateway.authenticate([secret])
        assert (reason_of(caught), caught.value.status) == ("expired", 401)
        await gateway.close()

    asyncio.run(run())


def test_models_of_a_key_are_names_or_their_aliases(bench):
    _, key = bench.add_key(models=("m",))

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        call = {"request_id": "r", "prompt_tokens": 1, "output_tokens": 1}
        (await gateway.open(key, model="Alias", served_as="M", **call)).settle(Usage(), "finished")
        with pytest.raises(Refused) as caught:
            await gateway.open(key, model="alias", served_as="other", **call)
        assert caught.value.status == 403
        await gateway.close()

    asyncio.run(run())


def test_a_request_given_up_while_it_opens_is_closed_again(bench):
    _, key = bench.add_key(concurrency=1, balance=PICO)

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        task = asyncio.create_task(opened(gateway, key, 0))
        # it has put its question before it hears that nobody waits
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (await opened(gateway, key, 1)).settle(Usage(), "finished")
        (day,) = await gateway.usage(key, **DAYS)
        assert day.num_requests == 2 and await gateway.balance(key) == PICO
        await gateway.close()

    asyncio.run(run())
    assert bench.in_store(lambda store: store.num_open(key.key_id)) == 0


def test_a_charge_is_settled_once(bench):
    _, key = bench.add_key(balance=PICO)

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        charge = await opened(gateway, key, 0)
        usage = Usage(hit_tokens=4, miss_tokens=6, completion_tokens=20, reasoning_tokens=5)
        for _ in range(3):
            charge.settle(usage, "finished")
        cost = 4 * 28_000 + 6 * 280_000 + 20 * 420_000
        assert charge.cost(usage) == cost and await gateway.balance(key) == PICO - cost
        text = generate_latest(Exposed(gateway)).decode()
        assert 'baleen_gateway_ledger_entries_total{outcome="finished"} 1.0' in text
        assert 'baleen_gateway_billed_tokens_total{kind="prompt_hit"} 4.0' in text
        assert "baleen_gateway_account_failures_total 0.0" in text
        await gateway.close()

    asyncio.run(run())


def test_calls_without_a_key_stand_in_the_ledger_too(bench):
    async def run():
        gateway = bench.gateway()
        await gateway.start()
        (await opened(gateway, None, 0)).settle(Usage(completion_tokens=3), "finished")
        (day,) = await gateway.usage(None, **DAYS)
        assert (day.key_id, day.usage.completion_tokens, day.cost) == ("", 3, 3 * 420_000)
        await gateway.close()

    asyncio.run(run())


def test_an_entry_waits_while_the_database_cannot_be_written(bench, monkeypatch):
    monkeypatch.setattr("router.gateway.accounts.sqlite_store.BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("router.gateway.accounts.clerk.RETRY_S", 0.01)
    _, key = bench.add_key()

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        charge = await opened(gateway, key, 0)
        other = sqlite3.connect(bench.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        charge.settle(Usage(completion_tokens=7), "finished")
        with pytest.raises(NotReady):
            await opened(gateway, key, 1)
        assert gateway.num_failures > 0
        other.execute("COMMIT")
        other.close()
        (day,) = await gateway.usage(key, **DAYS)
        assert day.usage.completion_tokens == 7 and gateway.meters.completion_tokens == 7
        await gateway.close()

    asyncio.run(run())


def test_a_gateway_that_left_requests_open_is_recovered_from(bench, monkeypatch):
    monkeypatch.setattr(accounts_module, "RECOVER_EVERY_S", 0.01)
    _, key = bench.add_key(concurrency=1, tokens_per_minute=100, balance=PICO)

    async def run():
        left, stays = bench.gateway(), bench.gateway()
        await stays.start()
        await left.start()
        await opened(left, key, 0)
        await left.close()
        async with asyncio.timeout(20):
            await bench.said.wait()
        assert stays.meters.entries["lost"] == 1
        # its place, its tokens and its money are free again
        (await opened(stays, key, 1, prompt=50, output=50)).settle(Usage(), "cancelled")
        (day,) = await stays.usage(key, **DAYS)
        assert (day.num_requests, day.cost, await stays.balance(key)) == (2, 0, PICO)
        await stays.close()

    asyncio.run(run())
    assert len(bench.lines) == 1 and "cost nothing" in bench.lines[0]


CALLS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.tuples(*[st.integers(0, 50)] * 3), st.integers(1, 3)),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(calls=CALLS)
def test_the_ledger_and_the_counters_agree_to_the_last_token(tmp_path_factory, calls):
    bench = Bench(tmp_path_factory.mktemp("accounts"))
    keys = [bench.add_key(balance=PICO // 1000)[1], bench.add_key(concurrency=4)[1], None]

    async def one(gateway, number, key, tokens, times):
        hit, miss, completion = tokens
        try:
            charge = await opened(gateway, key, number, prompt=hit + miss, output=completion)
        except Refused:
            return
        for _ in range(times):
            charge.settle(Usage(hit, miss, completion, completion // 2), "finished")

    async def run():
        gateways = [bench.gateway(), bench.gateway()]
        for gateway in gateways:
            await gateway.start()
        await asyncio.gather(
            *(
                one(gateways[place], number, keys[key], tokens, times)
                for number, (place, key, tokens, times) in enumerate(calls)
            )
        )
        for gateway in gateways:
            await gateway.close()
        return [gateway.meters for gateway in gateways]

    meters = asyncio.run(run())
    days = bench.in_store(lambda store: store.usage(None, **DAYS))
    for name in ("hit_tokens", "miss_tokens", "completion_tokens", "reasoning_tokens"):
        assert sum(getattr(day.usage, name) for day in days) == sum(getattr(one, name) for one in meters)
    assert sum(day.cost for day in days) == sum(one.cost for one in meters)
    assert sum(day.num_requests for day in days) == sum(one.entries["finished"] for one in meters)
    spent = sum(day.cost for day in days if day.key_id == keys[0].key_id)
    left = bench.in_store(lambda store: store.balance(keys[0].key_id))
    assert spent + left == PICO // 1000 and left >= 0


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
