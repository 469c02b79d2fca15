"""Who is alive: judged from times alone."""

from __future__ import annotations

from baleen.ids import Incarnation
from workers.parallel.membership import Membership, name_ranks
from workers.parallel.messages import Heartbeat


def members(*ranks: int, timeout_s: float = 3.0) -> Membership:
    return Membership({rank: Incarnation(f"life-{rank}") for rank in ranks}, timeout_s=timeout_s, now=100.0)


def test_a_peer_is_lost_after_the_timeout_and_named() -> None:
    group = members(1, 2, 3)
    for rank in (1, 3):
        group.heard(rank, 102.9)
    assert group.silence_ends_at() == 103.0
    assert group.silent(102.99) is None
    assert group.silent(103.0) == "rank 2 silent for 3.0 s (stopped, or unreachable)"


def test_peers_that_fell_silent_together_are_named_together() -> None:
    group = members(1, 2, 3)
    group.heard(1, 102.9)
    group.heard(3, 100.2)
    assert group.silent(103.1) == "ranks 2, 3 silent for 3.1 s (stopped, or unreachable)"


def test_when_all_others_are_silent_this_rank_may_be_cut_off() -> None:
    cause = members(0, 1).silent(103.0)
    assert cause is not None and cause.endswith("all others are, so this rank itself may be cut off")
    alone = members(1).silent(103.0)
    assert alone == "rank 1 silent for 3.0 s (stopped, or unreachable)"


def test_the_time_that_this_process_slept_is_not_silence() -> None:
    group = members(1)
    group.forgive(2.0, 102.5)
    assert group.silent(104.9) is None
    assert group.silent(105.0) is not None
    group.forgive(60.0, 106.0)
    assert group.silence_ends_at() == 109.0  # never heard of in the future


def test_a_rank_that_left_is_no_fault() -> None:
    group = members(1, 2)
    group.leave(1)
    group.heard(2, 200.0)
    assert group.silent(200.0) is None
    assert group.closed(1) is None
    assert group.gone(1) == "rank 1 left the group"
    assert group.closed(2) == "rank 2 closed its connection (its process ended)"
    assert group.gone(2) == "rank 2 closed its step connection"
    group.leave(2)
    assert group.silence_ends_at() == float("inf")


def test_the_rank_that_entered_fewer_collectives_is_behind() -> None:
    group = members(1, 2, 3)
    for rank, collectives in ((1, 8), (2, 7), (3, 9)):
        group.beat(rank, Heartbeat(4, "run", 1.5, collectives))
    assert group.behind(8) == [2]
    group.heard(2, 110.0)
    assert group.overdue([2], where="a collective of step 4", timeout_s=2.0, now=110.5) == (
        "rank 2 did not come to a collective of step 4 within 2.0 s: rank 2 is at step 4 in phase run for 2.0 s"
    )
    assert group.overdue([], where="step 5", timeout_s=2.0, now=110.5) == (
        "step 5 did not complete within 2.0 s although every rank is in it"
    )


def test_health_tells_the_age_of_what_it_knows() -> None:
    group = members(1)
    group.beat(1, Heartbeat(4, "run", 1.5, 8))
    (peer,) = group.health(101.25)
    assert (peer.rank, peer.incarnation, peer.step, peer.phase) == (1, "life-1", 4, "run")
    assert (peer.seconds_in_phase, peer.silence_s) == (1.5, 1.25)


def test_names() -> None:
    assert name_ranks([2]) == "rank 2"
    assert name_ranks(iter([1, 2, 3])) == "ranks 1, 2, 3"
