"""A group of one keeps the contract of a group."""

from __future__ import annotations

import threading

import pytest

from baleen.clock import SystemClock
from baleen.config import ParallelConfig
from baleen.errors import EpochEnded
from baleen.ids import Incarnation
from tests.support.clock import ManualClock
from workers.parallel.group import Agreement, Group
from workers.parallel.join import open_group
from workers.parallel.local_group import LocalGroup
from workers.parallel.lockstep import DecodeSize


def open_one(causes: list[str], clock: ManualClock | SystemClock | None = None) -> Group:
    return open_group(ParallelConfig(), causes.append, clock=clock, incarnation=Incarnation("life"))


def test_steps() -> None:
    group = open_one([])
    assert isinstance(group, LocalGroup)
    assert group.exchange(0, 5, decode=DecodeSize(5, 9)) == Agreement(0, (5,), (False,), DecodeSize(5, 9))
    agreement = group.exchange(1, 0, draining=True)
    assert agreement.all_idle and agreement.any_draining and agreement.may_leave
    with pytest.raises(AssertionError, match="step 5 after step 1"):
        group.exchange(5, 0)


def test_notify_before_and_during_the_wait() -> None:
    group = open_one([])
    assert not group.wait_for_work(0.0)
    group.notify()
    group.notify()
    assert group.wait_for_work(30.0)
    assert not group.wait_for_work(0.0)
    ringer = threading.Thread(target=group.notify)
    ringer.start()
    assert group.wait_for_work(30.0)
    ringer.join()


def test_the_end_is_told_once_and_stays() -> None:
    causes: list[str] = []
    group = open_one(causes)
    group.check()
    group.end("rank 0 is broken")
    group.end("again")
    assert causes == ["rank 0 is broken"]
    for call in (group.check, lambda: group.exchange(0, 1), lambda: group.wait_for_work(30.0)):
        with pytest.raises(EpochEnded, match="epoch ended: rank 0 is broken"):
            call()
    with pytest.raises(EpochEnded):
        group.await_all("loaded", 1.0)
    group.close()


def test_health_is_progress() -> None:
    clock = ManualClock()
    group = open_one([], clock)
    group.exchange(0, 1)
    group.report("run")
    clock.advance(12.5)
    health = group.health()
    assert (health.rank, health.step, health.phase, health.seconds_in_phase) == (0, 0, "run", 12.5)
    assert (health.epoch, health.incarnation, health.ended, health.peers) == ("local", "life", None, ())
    group.end("over")
    assert group.health().ended == "over"


def test_a_group_may_leave_only_when_all_drain_and_none_has_work() -> None:
    assert Agreement(3, (0, 0), (True, True)).may_leave
    assert not Agreement(3, (0, 0), (True, False)).may_leave
    assert not Agreement(3, (0, 1), (True, True)).may_leave
    assert Agreement(3, (0, 4), (False, True)).any_draining
    assert Agreement(3, (2, 4), (False, False)).num_tokens == 6
