"""Ranks of one epoch find each other, and only each other."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from baleen.clock import SystemClock
from baleen.config import ParallelConfig
from baleen.errors import ConfigError, EpochEnded
from baleen.ids import Incarnation
from workers.parallel.mesh import Member
from workers.parallel.rendezvous import Rendezvous


def member(rank: int) -> Member:
    return Member(rank, "127.0.0.1", 4000 + rank, Incarnation(f"life-{rank}"))


def meet(config: ParallelConfig, rank: int, *, epoch: str = "e1", timeout_s: float = 30.0) -> dict[int, Member]:
    clock = SystemClock()
    config = replace(config, rank=rank, epoch=epoch, join_timeout_s=timeout_s)
    return Rendezvous(config, deadline=clock.now() + timeout_s, clock=clock).meet(member(rank))


@pytest.fixture
def by_file(tmp_path: Path) -> ParallelConfig:
    return ParallelConfig(world_size=2, rendezvous=f"file://{tmp_path}/meet")


def test_members_are_read_back(by_file: ParallelConfig) -> None:
    with pytest.raises(EpochEnded, match=r"rank 1 did not join within 0\.1 s"):
        meet(by_file, 0, timeout_s=0.1)
    assert meet(by_file, 1) == {0: member(0), 1: member(1)}


def test_missing_ranks_are_named(tmp_path: Path) -> None:
    config = ParallelConfig(world_size=4, rendezvous=f"file://{tmp_path}/meet")
    with pytest.raises(EpochEnded, match=r"ranks 0, 1, 3 did not join within 0\.1 s"):
        meet(config, 2, timeout_s=0.1)


def test_another_epoch_at_the_same_place_is_not_met(by_file: ParallelConfig) -> None:
    for rank, epoch in ((0, "e1"), (1, "e2")):
        with pytest.raises(EpochEnded, match="did not join"):
            meet(by_file, rank, epoch=epoch, timeout_s=0.1)


def test_a_rank_that_was_given_twice(by_file: ParallelConfig) -> None:
    with pytest.raises(EpochEnded):
        meet(by_file, 0, timeout_s=0.1)
    with pytest.raises(ConfigError, match=r"parallel\.rank 0 has joined epoch 'e1' before"):
        meet(by_file, 0)


def test_over_tcp(by_file: ParallelConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = replace(by_file, rendezvous=f"tcp://127.0.0.1:{port}")
    clock = SystemClock()
    server = Rendezvous(config, deadline=clock.now() + 0.2, clock=clock)
    with pytest.raises(EpochEnded, match="rank 1 did not join"):
        server.meet(member(0))
    config = replace(config, rank=1, epoch=config.epoch)
    assert Rendezvous(config, deadline=clock.now() + 30, clock=clock).meet(member(1)) == {0: member(0), 1: member(1)}
    with pytest.raises(ConfigError, match=r"parallel\.rendezvous is 'tcp://127\.0\.0\.1:\d+': .*EADDRINUSE"):
        Rendezvous(replace(config, rank=0), deadline=clock.now() + 30, clock=clock)


def test_over_tcp_without_rank_0(by_file: ParallelConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EpochEnded, match=rf"rank 0 did not listen at 127\.0\.0\.1:{port} within 0\.1 s"):
        meet(replace(by_file, rendezvous=f"tcp://127.0.0.1:{port}"), 1, timeout_s=0.1)


@pytest.mark.parametrize("place", ["tcp://127.0.0.1", "tcp://:4000", "file:///no/such/directory/meet"])
def test_places_that_cannot_be(by_file: ParallelConfig, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.rendezvous is '{place}'"):
        meet(replace(by_file, rendezvous=place), 0)
