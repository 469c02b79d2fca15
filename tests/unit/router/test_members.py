"""Membership: who joins, who leaves, and what remains while Redis is away."""

from dataclasses import replace

import pytest

from baleen.reports import Load
from router.members import Members
from tests.support.redis_server import rank_info

LOAD = Load(
    free_blocks=50,
    num_waiting=1,
    num_running=2,
    queued_tokens=300,
    running_tokens=400,
    prefill_tokens_per_s=1000.0,
    decode_tokens_per_s=100.0,
)


def leases(*names):
    return {name: rank_info(name) for name in names}


@pytest.fixture
def members():
    members = Members()
    members.apply(leases("a", "b"))
    for name in "ab":
        members.reached(name)
        members.report(name, LOAD)
    return members


def view(members, name):
    [found] = [rank for rank in members.snapshot().ranks if rank.incarnation == name]
    return found


def names(members):
    return [rank.incarnation for rank in members.snapshot().ranks]


def test_leases_come_and_go():
    members = Members()
    assert members.apply(leases("a", "b")).added == (rank_info("a"), rank_info("b"))
    changes = members.apply(leases("b", "c"))
    assert (changes.added, changes.removed) == ((rank_info("c"),), (rank_info("a"),))
    assert members.info("a") is None
    assert members.info("c") == rank_info("c")
    assert len(members) == 2


def test_a_rank_is_chosen_from_when_its_session_stands_and_it_has_reported():
    members = Members()
    members.apply(leases("a"))
    assert names(members) == []
    members.report("a", LOAD)
    assert names(members) == []
    members.reached("a")
    assert names(members) == ["a"]
    rank = view(members, "a")
    assert (rank.free_blocks, rank.num_running, rank.queued_tokens, rank.total_blocks) == (50, 2, 300, 64)
    members.lost("a")
    assert names(members) == []
    members.reached("a")
    assert names(members) == [], "what it said before it was lost is old"


def test_a_rank_without_lease_stays_while_its_session_stands(members):
    assert members.apply(leases("b")).removed == ()
    assert names(members) == ["a", "b"]
    members.lost("a")
    assert members.apply(leases("b")).removed == (rank_info("a"),)
    assert names(members) == ["b"]


def test_what_was_sent_counts_at_once_and_until_the_second_report(members):
    members.sent("a", "r1", tokens=700, blocks=11)
    rank = view(members, "a")
    assert (rank.sent_requests, rank.sent_tokens, rank.sent_blocks) == (1, 700, 11)
    assert (rank.tokens_ahead, rank.room, rank.num_requests) == (1000, 39, 4)
    members.report("a", LOAD)
    members.sent("a", "r2", tokens=10, blocks=1)
    members.report("b", LOAD)
    assert view(members, "a").sent_tokens == 710
    members.report("a", replace(LOAD, queued_tokens=900))
    assert view(members, "a").sent_tokens == 10
    assert view(members, "a").tokens_ahead == 910
    members.settled("a", "r2")
    members.settled("a", "r2")
    assert view(members, "a").sent_requests == 0


def test_a_lost_rank_owes_nothing(members):
    members.sent("a", "r1", tokens=700, blocks=11)
    members.lost("a")
    members.reached("a")
    members.report("a", LOAD)
    assert view(members, "a").sent_tokens == 0


def test_the_snapshot_is_made_anew_only_for_changes_and_shares_what_stayed(members):
    first = members.snapshot()
    assert members.snapshot() is first
    members.apply(leases("a", "b"))
    assert members.snapshot() is first
    members.report("a", replace(LOAD, num_running=3))
    second = members.snapshot()
    assert second is not first
    assert second.ranks[1] is first.ranks[1]
    assert first.ranks[0].num_running == 2


def test_news_of_an_unknown_rank_are_passed_over(members):
    before = members.snapshot()
    members.report("x", LOAD)
    members.sent("x", "r", tokens=1, blocks=1)
    members.settled("x", "r")
    members.lost("x")
    assert members.snapshot() is before
