"""A group of real processes: agreement, waking, meeting, leaving, and ends that are not faults of the machine."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.group_programs import Puppets, Record, Strings, group_config, start_group, step_loop
from tests.support.processes import Nursery, nursery, wait_all
from workers.parallel.group import Agreement, Health

PATIENT_S = 30.0


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Nursery]:
    with nursery(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Puppets]:
    """Four puppets that must all leave in order in the end, without a cause."""
    directory = tmp_path_factory.mktemp("four")
    with nursery(directory) as started:
        puppets = Puppets(started, group_config(directory, 4))
        yield puppets
        assert puppets.all(causes_so_far) == [[], [], [], []]
        puppets.close()
        assert [child.wait() for child in puppets.children] == [0, 0, 0, 0]
        assert [child.errors() for child in puppets.children] == ["", "", "", ""]


# What puppets are told to do.


def causes_so_far(strings: Strings) -> list[str]:
    return strings.causes


def step(strings: Strings, num_tokens: int, draining: bool = False) -> Agreement:
    number = strings.kept.get("step", 0)
    strings.kept["step"] = number + 1
    return strings.group.exchange(number, num_tokens, draining=draining)


def step_by_rank(strings: Strings) -> Agreement:
    return step(strings, 10 * strings.config.rank, draining=strings.config.rank == 2)


def wait(strings: Strings, timeout_s: float) -> bool:
    return strings.group.wait_for_work(timeout_s)


def notify(strings: Strings) -> None:
    strings.group.notify()


def notify_from_a_thread_while_waiting(strings: Strings) -> bool:
    ringer = threading.Timer(0.05, strings.group.notify)
    ringer.start()
    woken = strings.group.wait_for_work(PATIENT_S)
    ringer.join()
    return woken


def work_at_random(strings: Strings, rounds: int) -> int:
    """Each round some ranks have work, told by another thread at any moment; nobody may sleep through a round."""
    shared, own = random.Random(5), random.Random(strings.config.rank)
    first = strings.kept.get("step", 0)
    for number in range(first, first + rounds):
        workers = shared.sample(range(4), k=shared.choice([1, 1, 2, 4]))
        if strings.config.rank in workers:
            threading.Timer(own.choice([0.0, 0.0005, 0.002]), strings.group.notify).start()
        until = time.monotonic() + own.choice([0.0, 0.0003, 0.001, 0.003])
        while time.monotonic() < until:
            pass
        if not strings.group.wait_for_work(PATIENT_S):
            return number
        strings.group.exchange(number, 1)
    strings.kept["step"] = first + rounds
    return first + rounds


def await_all(strings: Strings, milestone: str, timeout_s: float) -> None:
    strings.group.await_all(milestone, timeout_s)


def report(strings: Strings, phase: str) -> None:
    strings.group.report(phase)


def health(strings: Strings) -> Health:
    return strings.group.health()


def end(strings: Strings, cause: str) -> None:
    strings.group.end(cause)


def skip_steps(strings: Strings, count: int) -> None:
    """The bug that the check of the step numbers exists for."""
    strings.kept["step"] = count
    strings.group._next_step = count  # type: ignore[attr-defined]


def dispatch(strings: Strings) -> None:
    exchange = strings.group.expert_exchange(3)
    exchange.dispatch(torch.zeros(1, 4), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))


# Agreement and waking.


def test_every_rank_gets_the_same_agreement(four: Puppets) -> None:
    agreements = four.all(step_by_rank)
    assert agreements[0].tokens_per_rank == (0, 10, 20, 30)
    assert agreements[0].draining_per_rank == (False, False, True, False)
    assert agreements == [agreements[0]] * 4


def test_an_agreement_needs_every_rank(four: Puppets) -> None:
    for rank in (0, 1, 2):
        four.tell(rank, step, 1)
    assert not any(four.ready(rank, 0.1) for rank in (0, 1, 2))
    four.tell(3, step, 1)
    assert all(four.result(rank)[0] == "ok" for rank in range(4))


def test_waiting_ends_by_time_or_by_notify(four: Puppets) -> None:
    assert four.all(wait, 0.01) == [False] * 4
    four.all(notify)
    assert four.all(wait, PATIENT_S) == [True] * 4
    assert four.all(wait, 0.0) == [False] * 4
    assert four.all(notify_from_a_thread_while_waiting) == [True] * 4


def test_a_rank_with_work_wakes_the_others(four: Puppets) -> None:
    for rank in (0, 1, 3):
        four.tell(rank, wait, PATIENT_S)
    four.tell(2, step, 5)
    assert [four.result(rank) for rank in (0, 1, 3)] == [("ok", True)] * 3
    # Awake, but not yet in the step: waiting again must not sleep.
    assert [four.each(wait, {rank: (PATIENT_S,)})[rank] for rank in (0, 1, 3)] == [True] * 3
    four.each(step, {0: (0,), 1: (0,), 3: (0,)})
    assert four.result(2)[0] == "ok"
    assert four.all(wait, 0.0) == [False] * 4


def test_no_wake_up_is_lost(four: Puppets) -> None:
    steps = four.all(work_at_random, 400)
    assert steps == [steps[0]] * 4


def test_milestones_and_health(four: Puppets) -> None:
    four.tell(0, await_all, "loaded", PATIENT_S)
    four.all_but(0, report, "load")
    seen = four.each(wait_until_peer_loads, {3: (1,)})[3]
    assert seen == "load"
    four.all_but(0, await_all, "loaded", PATIENT_S)
    assert four.result(0) == ("ok", None)
    state = four.each(health, {2: ()})[2]
    assert (state.rank, state.phase, state.ended) == (2, "await loaded", None)
    assert [peer.rank for peer in state.peers] == [0, 1, 3]
    assert len({peer.incarnation for peer in state.peers} | {state.incarnation}) == 4


def wait_until_peer_loads(strings: Strings, rank: int) -> str:
    until = time.monotonic() + PATIENT_S
    while time.monotonic() < until:
        (peer,) = [peer for peer in strings.group.health().peers if peer.rank == rank]
        if peer.phase == "load":
            return peer.phase
        strings.group.wait_for_work(0.02)
    return "never"


# Ends that someone caused.


def ends(puppets: Puppets, ranks: list[int]) -> list[Any]:
    results = [puppets.result(rank) for rank in ranks]
    assert [status for status, _ in results] == ["ended"] * len(ranks), results
    return [cause for _, cause in results]


def small_group(children: Nursery, directory: Path, **changes: Any) -> Puppets:
    return Puppets(children, group_config(directory, 3, **changes))


def test_one_ranks_failure_ends_all_with_its_words(children: Nursery, tmp_path: Path) -> None:
    three = small_group(children, tmp_path)
    for rank in (0, 2):
        three.tell(rank, step, 1)
    three.each(end, {1: ("rank 1: ValueError: planted",)})
    assert ends(three, [0, 2]) == ["rank 1: ValueError: planted"] * 2
    three.tell(1, wait, PATIENT_S)
    assert ends(three, [1]) == ["rank 1: ValueError: planted"]
    assert three.all(causes_so_far) == [["rank 1: ValueError: planted"]] * 3


def test_ranks_at_different_steps_end_naming_one(children: Nursery, tmp_path: Path) -> None:
    three = small_group(children, tmp_path)
    three.each(skip_steps, {1: (5,)})
    for rank in range(3):
        three.tell(rank, step, 1)
    causes = ends(three, [0, 1, 2])
    assert all(re.fullmatch(r"rank \d is at step [05] while rank \d is at step [05]", cause) for cause in causes)
    assert all("rank 1 is at step 5" in cause for cause in causes)


def test_a_rank_that_does_not_come_to_a_step_is_named_with_what_it_does(children: Nursery, tmp_path: Path) -> None:
    three = small_group(children, tmp_path, collective_timeout_s=1.0)
    three.each(report, {1: ("daydream",)})
    for rank in (0, 2):
        three.tell(rank, step, 1)
    causes = ends(three, [0, 2])
    assert causes[0] == causes[1]
    expected = r"rank 1 did not come to step 0 within 1\.0 s: rank 1 is at step -1 in phase daydream for 1\.\d s"
    assert re.fullmatch(expected, causes[0])
    three.tell(1, wait, PATIENT_S)
    assert ends(three, [1]) == causes[:1]


def test_a_rank_that_does_not_come_to_a_collective_is_named(children: Nursery, tmp_path: Path) -> None:
    three = small_group(children, tmp_path, collective_timeout_s=1.0)
    three.all(step, 1)
    three.each(report, {1: ("daydream",)})
    for rank in (0, 2):
        three.tell(rank, dispatch)
    causes = ends(three, [0, 2])
    assert causes[0] == causes[1]
    assert causes[0].startswith("rank 1 did not come to a collective of step 0 within 1.0 s: rank 1 is at step 0 in")
    assert "in phase daydream for" in causes[0]


def test_a_milestone_that_one_rank_misses(children: Nursery, tmp_path: Path) -> None:
    three = small_group(children, tmp_path)
    three.each(report, {2: ("load",)})
    for rank in (0, 1):
        three.tell(rank, await_all, "loaded", 0.5)
    causes = ends(three, [0, 1])
    assert causes[0] == causes[1]
    assert causes[0].startswith("rank 2 did not come to milestone 'loaded' within 0.5 s: rank 2 is at step -1 in phase")


# Joining and leaving.


def tcp_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("over", ["file", "tcp"])
def test_a_group_works_and_drains_when_one_rank_is_told_to(children: Nursery, tmp_path: Path, over: str) -> None:
    config = group_config(tmp_path, 4)
    if over == "tcp":
        config = replace(config, rendezvous=tcp_address())
    ranks = start_group(children, config, step_loop, str(tmp_path), False)
    assert [rank.event() for rank in ranks] == ["joined"] * 4
    assert [rank.event() for rank in ranks] == [{"idle": 0}] * 4
    ranks[1].send(signal.SIGUSR1)
    assert [rank.event() for rank in ranks] == [{"idle": 2}] * 4
    assert [Record.read(tmp_path, rank) for rank in range(4)] == [(1, 1)] * 4
    ranks[3].send(signal.SIGTERM)
    wait_all(ranks)
    assert [(rank.code, rank.errors()) for rank in ranks] == [(0, "")] * 4


def test_missing_ranks_are_named_at_the_join(children: Nursery, tmp_path: Path) -> None:
    config = group_config(tmp_path, 4, join_timeout_s=1.0)
    ranks = start_group(children, config, step_loop, str(tmp_path), False, skip=(1, 2))
    wait_all(ranks)
    for rank in ranks:
        assert (rank.code, rank.errors()) == (
            75,
            f"{rank.name}: epoch ended: ranks 1, 2 did not join within 1.0 s\n",
        )


def test_epochs_at_one_rendezvous_never_meet(children: Nursery, tmp_path: Path) -> None:
    old = group_config(tmp_path, 2)
    new = replace(group_config(tmp_path, 2), rendezvous=old.rendezvous)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    of_old = start_group(children, old, step_loop, str(tmp_path / "old"), False)
    of_new = start_group(children, new, step_loop, str(tmp_path / "new"), False)
    for rank in of_old + of_new:
        assert [rank.event(), rank.event()] == ["joined", {"idle": 0}]
    of_old[0].send(signal.SIGTERM)
    wait_all(of_old)
    of_new[0].send(signal.SIGUSR1)
    assert [rank.event() for rank in of_new] == [{"idle": 2}] * 2
    of_new[1].send(signal.SIGTERM)
    wait_all(of_new)
    assert [rank.code for rank in of_old + of_new] == [0] * 4


def test_the_same_rank_twice_is_refused(children: Nursery, tmp_path: Path) -> None:
    config = group_config(tmp_path, 2)
    ranks = start_group(children, config, step_loop, str(tmp_path), False)
    assert [rank.event() for rank in ranks] == ["joined"] * 2
    again = children.fork("rank 1", step_loop, replace(config, rank=1), os.fspath(tmp_path), False)
    assert again.wait() == 2
    assert f"parallel.rank 1 has joined epoch '{config.epoch}' before" in again.errors()
    ranks[0].send(signal.SIGTERM)
    wait_all(ranks)
    assert [rank.code for rank in ranks] == [0, 0]
