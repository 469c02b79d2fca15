"""Accounts in an event loop: checks of keys, reservations that always end, totals that agree with the counters."""

import asyncio
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from baleen.errors import NotReady
from baleen.exposition import Samples
from router.gateway.accounts import accounts as accounts_module
from router.gateway.accounts.accounts import KEYS_FRESH_S, NEW_KEY_WAIT_S
from router.gateway.accounts.money import PICO, Usage
from router.gateway.accounts.records import Refused
from router.gateway.accounts.secret import new_secret
from tests.support.accounts_bench import DAYS, WALL, Bench, opened


class Exposed(CollectorRegistry):
    """What a scrape of one gateway finds of its accounts."""

    def __init__(self, gateway):
        super().__init__()
        self.register(Samples("gateway", gateway.samples))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


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


def test_a_new_key_is_good_at_once(bench):
    bench.add_key()

    async def run():
        gateway = bench.gateway()
        await gateway.start()
        secret, key = bench.add_key()
        task = asyncio.create_task(gateway.authenticate([secret]))
        await asyncio.sleep(0)
        bench.clock.advance(2 * NEW_KEY_WAIT_S)
        assert await task == key
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


def test_a_gateway_that_starts_leaves_requests_of_living_ones_alone(bench):
    _, key = bench.add_key(concurrency=1)

    async def run():
        first, second = bench.gateway(), bench.gateway()
        await first.start()
        charge = await opened(first, key, 0)
        await second.start()
        with pytest.raises(Refused) as caught:
            await opened(second, key, 1)
        assert reason_of(caught) == "concurrency"
        charge.settle(Usage(completion_tokens=2), "finished")
        (day,) = await first.usage(key, **DAYS)
        assert (day.num_requests, day.usage.completion_tokens) == (1, 2)
        await first.close()
        await second.close()

    asyncio.run(run())


def test_entries_are_forced_to_the_disk_and_reservations_are_not(bench):
    async def run():
        gateway = bench.gateway()
        await gateway.start()
        clerk = gateway._clerk

        def level(store):
            return store._read("PRAGMA synchronous")[0][0]

        # 2 is FULL, 1 is NORMAL
        assert await asyncio.wrap_future(clerk.tell(level)) == 2
        assert await clerk.ask(level) == 1
        await gateway.close()

    asyncio.run(run())
