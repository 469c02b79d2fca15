"""Ranks connect in pairs over loopback; strangers and other epochs are turned away."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from baleen.clock import SystemClock
from baleen.errors import EpochEnded
from baleen.ids import Incarnation
from workers.parallel.mesh import Member, Mesh, connect_mesh, listen
from workers.parallel.messages import Hello, encode

PATIENT_S = 30.0


class Ranks:
    """Listening ranks of one epoch, connected by threads."""

    def __init__(self, world_size: int) -> None:
        self.listeners = [listen("127.0.0.1", world_size) for _ in range(world_size)]
        self.members = {
            rank: Member(rank, "127.0.0.1", listener.getsockname()[1], Incarnation(f"life-{rank}"))
            for rank, listener in enumerate(self.listeners)
        }
        self.outcomes: dict[int, Mesh | EpochEnded] = {}
        self._threads: list[threading.Thread] = []

    def connect(self, rank: int, *, epoch: str = "epoch-1", timeout_s: float = PATIENT_S) -> None:
        clock = SystemClock()
        try:
            self.outcomes[rank] = connect_mesh(
                self.members[rank],
                self.members,
                epoch,
                self.listeners[rank],
                deadline=clock.now() + timeout_s,
                clock=clock,
            )
        except EpochEnded as error:
            self.outcomes[rank] = error

    def connect_in_thread(self, rank: int) -> None:
        thread = threading.Thread(target=self.connect, args=(rank,))
        thread.start()
        self._threads.append(thread)

    def mesh(self, rank: int) -> Mesh:
        outcome = self.outcomes[rank]
        assert isinstance(outcome, Mesh), outcome
        return outcome

    def cause(self, rank: int) -> str:
        outcome = self.outcomes[rank]
        assert isinstance(outcome, EpochEnded)
        return outcome.cause

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENT_S)

    def close(self) -> None:
        self.join()
        for listener in self.listeners:
            listener.close()
        for outcome in self.outcomes.values():
            if isinstance(outcome, Mesh):
                outcome.close()


@pytest.fixture
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def check_complete(ranks: Ranks) -> None:
    """Each pair is connected on each lane, and to the right rank."""
    for lane in ("control", "step"):
        for rank in range(3):
            for other, sock in ranks.mesh(rank).lane(lane).items():
                sock.sendall(f"{lane} {rank}->{other}".encode())
        for rank in range(3):
            peers = ranks.mesh(rank).lane(lane)
            assert sorted(peers) == [other for other in range(3) if other != rank]
            for other, sock in peers.items():
                sock.settimeout(PATIENT_S)
                assert sock.recv(100) == f"{lane} {other}->{rank}".encode()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_every_pair_is_connected(three: Ranks) -> None:
    for rank in (2, 0, 1):
        three.connect_in_thread(rank)
    three.join()
    check_complete(three)


def test_strangers_are_turned_away_and_do_not_disturb(three: Ranks) -> None:
    own, member = three.members[0], three.members[1]
    wrong = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 5000,
        encode(Hello("epoch-0", 1, member.incarnation, own.incarnation, "control")),
        encode(Hello("epoch-1", 1, "life-of-another", own.incarnation, "control")),
        encode(Hello("epoch-1", 1, member.incarnation, "life-of-another", "control")),
        encode(Hello("epoch-1", 1, member.incarnation, own.incarnation, "gossip")),
        encode(Hello("epoch-1", 7, member.incarnation, own.incarnation, "control")),
        encode(Hello("epoch-1", 0, own.incarnation, own.incarnation, "control")),
    ]
    strangers = []
    for words in wrong:
        strangers.append(socket.create_connection((own.host, own.port), timeout=PATIENT_S))
        strangers[-1].sendall(words)
    for rank in range(3):
        three.connect_in_thread(rank)
    three.join()
    check_complete(three)
    for stranger in strangers:
        # Hung up without a word; a reset where some of the stranger's words were never read.
        with stranger, contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""


def test_a_rank_that_does_not_come_is_named(three: Ranks) -> None:
    three.connect(0, timeout_s=0.1)
    assert three.cause(0) == "ranks 1, 2 did not connect to rank 0 in time"


def test_a_rank_that_is_gone_is_named(three: Ranks) -> None:
    three.listeners[0].close()
    three.connect(1)
    assert three.cause(1).startswith(f"rank 0 at 127.0.0.1:{three.members[0].port} cannot be reached: ")


def test_another_life_on_the_same_port_is_not_taken_for_the_rank(three: Ranks) -> None:
    """Rank 1 read an old address book: what listens there now must not answer for the rank it means."""
    three.members = dict(three.members)
    real = three.members[0]
    three.connect_in_thread(0)
    three.members[0] = replace(real, incarnation=Incarnation("an older life"))
    three.connect(1, timeout_s=5.0)
    assert three.cause(1).startswith(f"rank 0 at 127.0.0.1:{real.port} did not answer the hello of rank 1")
    three.members[0] = real
    for rank in (1, 2):
        three.connect_in_thread(rank)
    three.join()
    check_complete(three)


def test_an_impostor_at_a_ranks_port_is_not_taken_for_it(three: Ranks) -> None:
    """Something else listens where rank 0 did, and even answers with a hello."""
    own = three.members[1]

    def answer() -> None:
        sock, _ = three.listeners[0].accept()
        with sock:
            sock.recv(1000)
            sock.sendall(encode(Hello("epoch-1", 0, "life-of-another", own.incarnation, "control")))
            sock.recv(1000)

    impostor = threading.Thread(target=answer)
    impostor.start()
    three.connect(1)
    impostor.join(PATIENT_S)
    assert three.cause(1).endswith("did not answer the hello of rank 1: its hello is not the one of this epoch")
