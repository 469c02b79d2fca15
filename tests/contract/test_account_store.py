"""The contract of account stores, held by the one in SQLite and by an independent one in memory."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import ConfigError, UnknownName
from router.gateway.accounts.money import PICO, Usage
from router.gateway.accounts.records import Entry, Key, Opening, Refused
from router.gateway.accounts.secret import digest
from router.gateway.accounts.sqlite_store import SqliteStore
from tests.support.memory_accounts import MemoryStore

WALL = 1_770_000_000.0  # 2026-02-02


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path):
    store = SqliteStore(tmp_path / "accounts.db") if request.param == "sqlite" else MemoryStore()
    yield store
    store.close()


def a_key(name="a", **limits):
    return Key(key_id=name, digest=digest(name), tenant="t", created_at=WALL, **limits)


def opening(request_id, key_id="a", *, tokens=10, cost=0):
    return Opening(request_id=request_id, key_id=key_id, tenant="t", model="m", most_tokens=tokens, most_cost=cost)


def entry(request_id, *, completion=0, cost=0, outcome="finished"):
    usage = Usage(completion_tokens=completion)
    return Entry(request_id=request_id, outcome=outcome, usage=usage, cost=cost)


def refusal(call, *arguments, **named):
    with pytest.raises(Refused) as caught:
        call(*arguments, **named)
    return caught.value


def test_a_key_comes_back_as_it_was(store):
    key = a_key(models=("x", "y"), requests_per_minute=1, tokens_per_minute=2, concurrency=3, expires_at=WALL + 1)
    store.add_key(key, balance=None)
    operator = a_key("b", is_operator=True)
    store.add_key(operator, balance=None)
    assert store.all_keys() == [key, operator]


def test_what_changes_a_key_changes_the_version(store):
    versions = [store.keys_version()]
    store.add_key(a_key(), balance=None)
    versions.append(store.keys_version())
    store.revoke("a", wall_s=WALL)
    versions.append(store.keys_version())
    assert len(set(versions)) == 3
    assert store.revoke("a", wall_s=WALL + 5).revoked_at == WALL


@pytest.mark.parametrize("call", ["revoke", "credit"])
def test_an_unknown_key_is_said_to_be_unknown(store, call):
    with pytest.raises(UnknownName):
        store.revoke("b", wall_s=WALL) if call == "revoke" else store.credit("b", 1, note="", wall_s=WALL)


def test_a_revoked_or_expired_key_opens_nothing(store):
    store.add_key(a_key(expires_at=WALL + 100), balance=None)
    store.open(opening("r1"), now_s=0.0, wall_s=WALL + 99.9)
    assert refusal(store.open, opening("r2"), now_s=0.0, wall_s=WALL + 100).reason == "expired"
    store.revoke("a", wall_s=WALL)
    assert refusal(store.open, opening("r3"), now_s=0.0, wall_s=WALL).reason == "key"
    assert refusal(store.open, opening("r4", "gone"), now_s=0.0, wall_s=WALL).reason == "key"


def test_requests_per_minute_run_out_and_come_back(store):
    key = a_key(requests_per_minute=3)
    store.add_key(key, balance=None)
    left = [store.take_request(key, now_s=5.0).remaining for _ in range(3)]
    refused = refusal(store.take_request, key, now_s=5.0)
    assert left == [2, 1, 0] and refused.reason == "requests" and refused.retry_after_s == pytest.approx(20.0)
    assert refusal(store.take_request, key, now_s=24.9).retry_after_s == pytest.approx(0.1)
    assert store.take_request(key, now_s=25.01).remaining == 0


def test_a_clock_that_went_back_gives_nothing_and_does_not_stop_the_refill(store):
    key = a_key(requests_per_minute=1)
    store.add_key(key, balance=None)
    store.take_request(key, now_s=1000.0)
    assert refusal(store.take_request, key, now_s=10.0).reason == "requests"


def test_tokens_are_reserved_and_what_was_not_used_comes_back(store):
    store.add_key(a_key(tokens_per_minute=100), balance=None)
    assert store.open(opening("r1", tokens=80), now_s=0.0, wall_s=WALL).remaining == 20
    refused = refusal(store.open, opening("r2", tokens=50), now_s=0.0, wall_s=WALL)
    assert refused.reason == "tokens" and refused.retry_after_s == pytest.approx(18.0)
    store.settle(entry("r1", completion=10), now_s=0.0, wall_s=WALL)
    assert store.open(opening("r2", tokens=50), now_s=0.0, wall_s=WALL).remaining == 40


def test_a_request_larger_than_a_minute_takes_it_all_and_leaves_a_debt(store):
    store.add_key(a_key(tokens_per_minute=100), balance=None)
    store.open(opening("r1", tokens=500), now_s=0.0, wall_s=WALL)
    store.settle(entry("r1", completion=400), now_s=0.0, wall_s=WALL)
    # 300 in debt: 60 s for each 100, and 1 more token to take
    assert refusal(store.open, opening("r2", tokens=1), now_s=0.0, wall_s=WALL).retry_after_s == pytest.approx(180.6)


def test_concurrency_counts_what_is_open(store):
    store.add_key(a_key(concurrency=2), balance=None)
    store.add_key(a_key("b", concurrency=1), balance=None)
    store.open(opening("r1"), now_s=0.0, wall_s=WALL)
    store.open(opening("r2"), now_s=0.0, wall_s=WALL)
    assert refusal(store.open, opening("r3"), now_s=0.0, wall_s=WALL).reason == "concurrency"
    store.open(opening("r4", "b"), now_s=0.0, wall_s=WALL)
    store.settle(entry("r1"), now_s=0.0, wall_s=WALL)
    store.open(opening("r3"), now_s=0.0, wall_s=WALL)
    assert (store.num_open("a"), store.num_open("b")) == (2, 1)


def test_a_balance_is_reserved_taken_and_filled_up(store):
    store.add_key(a_key(has_balance=True), balance=10)
    store.open(opening("r1", cost=6), now_s=0.0, wall_s=WALL)
    assert refusal(store.open, opening("r2", cost=5), now_s=0.0, wall_s=WALL).reason == "balance"
    store.settle(entry("r1", cost=2), now_s=0.0, wall_s=WALL)
    assert store.balance("a") == 8
    store.open(opening("r2", cost=8), now_s=0.0, wall_s=WALL)
    store.settle(entry("r2", cost=8), now_s=0.0, wall_s=WALL)
    # nothing is left, not even for what costs nothing
    assert refusal(store.open, opening("r3", cost=0), now_s=0.0, wall_s=WALL).reason == "balance"
    assert store.credit("a", 5, note="", wall_s=WALL) == 5
    store.open(opening("r3", cost=5), now_s=0.0, wall_s=WALL)


def test_a_balance_has_a_most_and_is_asked_for_when_the_key_is_made(store):
    store.add_key(a_key(has_balance=True), balance=10**6 * PICO)
    store.add_key(a_key("b"), balance=None)
    with pytest.raises(ConfigError):
        store.credit("a", 1, note="", wall_s=WALL)
    with pytest.raises(ConfigError):
        store.credit("b", 1, note="", wall_s=WALL)
    assert (store.balance("a"), store.balance("b"), store.balance("c")) == (10**6 * PICO, None, None)


def test_a_request_is_written_once(store):
    store.add_key(a_key(has_balance=True), balance=100)
    store.open(opening("r1", cost=9), now_s=0.0, wall_s=WALL)
    assert store.settle(entry("r1", cost=9), now_s=0.0, wall_s=WALL) is True
    assert store.settle(entry("r1", cost=9), now_s=0.0, wall_s=WALL) is False
    assert store.settle(entry("never"), now_s=0.0, wall_s=WALL) is False
    (day,) = store.usage("a", first_day="0000", last_day="9999")
    assert (day.day, day.num_requests, day.cost, store.balance("a")) == ("2026-02-02", 1, 9, 91)


def test_usage_is_by_day_and_key(store):
    for number, (key, wall_s) in enumerate([("a", WALL), ("a", WALL + 86400), ("a", WALL + 86400), ("b", WALL)]):
        store.open(opening(f"r{number}", ""), now_s=0.0, wall_s=wall_s) if key == "b" else None
        if key == "a":
            if not store.all_keys():
                store.add_key(a_key(), balance=None)
            store.open(opening(f"r{number}"), now_s=0.0, wall_s=wall_s)
        store.settle(entry(f"r{number}", completion=2**number), now_s=0.0, wall_s=wall_s)
    days = store.usage("a", first_day="2026-02-02", last_day="2026-02-03")
    assert [(one.day, one.num_requests, one.usage.completion_tokens) for one in days] == [
        ("2026-02-02", 1, 1),
        ("2026-02-03", 2, 6),
    ]
    assert store.usage("a", first_day="2026-02-03", last_day="2026-02-03") == days[1:]
    assert [one.key_id for one in store.usage(None, first_day="2026-02-02", last_day="2026-02-02")] == ["", "a"]


def test_what_fails_inside_a_transaction_takes_the_rest_back(store):
    store.add_key(a_key(has_balance=True), balance=10)
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.open(opening("r1", cost=3), now_s=0.0, wall_s=WALL)
        store.settle(entry("r1", cost=3), now_s=0.0, wall_s=WALL)
        raise ZeroDivisionError
    assert (store.balance("a"), store.num_open("a")) == (10, 0)
    assert store.usage(None, first_day="0000", last_day="9999") == []


STEP = st.one_of(
    st.tuples(st.just("call"), st.sampled_from("ab")),
    st.tuples(st.just("open"), st.sampled_from("ab"), st.integers(0, 60), st.integers(0, 40)),
    st.tuples(st.just("settle"), st.integers(0, 30), st.integers(0, 60), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.integers(1, 50)),
    st.tuples(st.just("credit"), st.sampled_from("ab"), st.integers(1, 50)),
    st.tuples(st.just("revoke"), st.sampled_from("ab")),
)


def played(store, steps):
    """What a store answers to every step, and what it holds in the end."""
    answers, now_s, num_opened = [], 0.0, 0
    keys = {
        "a": a_key("a", tokens_per_minute=100, concurrency=3, has_balance=True),
        "b": a_key("b", requests_per_minute=5, has_balance=True),
    }
    for key in keys.values():
        store.add_key(key, balance=60)
    reserved = {}
    for step in steps:
        try:
            match step:
                case ("call", name):
                    answers.append(store.take_request(keys[name], now_s=now_s))
                case ("open", name, tokens, cost):
                    request_id = f"r{num_opened}"
                    answers.append(
                        store.open(opening(request_id, name, tokens=tokens, cost=cost), now_s=now_s, wall_s=WALL)
                    )
                    reserved[request_id] = cost
                    num_opened += 1
                case ("settle", number, tokens, cost):
                    request_id = f"r{number}"
                    least = min(cost, reserved.get(request_id, 0))
                    written = entry(request_id, completion=tokens, cost=least)
                    answers.append(store.settle(written, now_s=now_s, wall_s=WALL))
                case ("wait", seconds):
                    # binary fractions, so that floats add up as fractions do
                    now_s += seconds * 0.9375
                case ("credit", name, amount):
                    answers.append(store.credit(name, amount, note="", wall_s=WALL))
                case ("revoke", name):
                    answers.append(store.revoke(name, wall_s=WALL).key_id)
        except Refused as error:
            answers.append((error.reason, round(error.retry_after_s or 0.0, 6)))
        for name in keys:
            assert store.balance(name) >= 0, "overdrawn"
    ends = [(store.balance(name), store.num_open(name)) for name in keys]
    return answers, ends, store.usage(None, first_day="0000", last_day="9999")


def rounded(answers):
    return [(one.limit, one.remaining, round(one.reset_s, 6)) if hasattr(one, "reset_s") else one for one in answers]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_sqlite_answers_as_the_one_in_memory_and_never_overdraws(tmp_path_factory, steps):
    store = SqliteStore(Path(tmp_path_factory.mktemp("accounts")) / "accounts.db")
    try:
        mine = played(store, steps)
    finally:
        store.close()
    reference = played(MemoryStore(), steps)
    assert (rounded(mine[0]), mine[1:]) == (rounded(reference[0]), reference[1:])
