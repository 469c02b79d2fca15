"""The meeting at a step, with the peers' ends of the connections held by the test."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from baleen.clock import SystemClock
from workers.parallel.lockstep import (
    NO_ROWS,
    DecodeSize,
    EpochOver,
    LaneClosed,
    Lockstep,
    Overdue,
    Word,
    common_size,
)

PATIENT_S = 30.0


class Meeting:
    """A Lockstep of rank 0 and the far ends of its connections to ranks 1 and 2."""

    def __init__(self) -> None:
        pairs = {rank: socket.socketpair() for rank in (1, 2)}
        self.far = {rank: theirs for rank, (_, theirs) in pairs.items()}
        self.lockstep = Lockstep({rank: ours for rank, (ours, _) in pairs.items()}, SystemClock())

    def say(self, rank: int, step: int, num_tokens: int = 0, draining: int = 0, rows: int = -1, keys: int = 0) -> None:
        self.far[rank].sendall(struct.pack("<qqqqq", step, num_tokens, draining, rows, keys))

    def close(self) -> None:
        self.lockstep.close()
        for sock in self.far.values():
            sock.close()


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    made = Meeting()
    yield made
    made.close()


def test_words_go_out_and_come_in(meeting: Meeting) -> None:
    meeting.say(1, 7, 3)
    meeting.say(2, 7, 0, 1)
    words = meeting.lockstep.exchange(Word(7, 5, False), PATIENT_S)
    assert words == {1: Word(7, 3, False), 2: Word(7, 0, True)}
    assert meeting.far[1].recv(100) == meeting.far[2].recv(100) == struct.pack("<qqqqq", 7, 5, 0, -1, 0)


def test_a_word_carries_the_size_of_a_decode_step(meeting: Meeting) -> None:
    meeting.say(1, 7, 2, rows=2, keys=700)
    meeting.say(2, 7, rows=0)
    words = meeting.lockstep.exchange(Word(7, 5, False, DecodeSize(5, 64)), PATIENT_S)
    assert words == {1: Word(7, 2, False, DecodeSize(2, 700)), 2: Word(7, 0, False, NO_ROWS)}
    assert meeting.far[2].recv(100) == struct.pack("<qqqqq", 7, 5, 0, 5, 64)


def test_the_common_size_holds_every_rank_s_rows_unless_one_computes_a_prompt() -> None:
    assert common_size([DecodeSize(5, 64), NO_ROWS, DecodeSize(2, 700)]) == DecodeSize(5, 700)
    assert common_size([DecodeSize(5, 64), None, NO_ROWS]) is None


def test_a_rank_may_be_a_step_ahead_and_words_may_come_in_pieces(meeting: Meeting) -> None:
    meeting.say(1, 0)
    meeting.say(1, 1, 9)
    meeting.far[2].sendall(struct.pack("<qqqqq", 0, 4, 0, -1, 0)[:5])
    with pytest.raises(Overdue) as caught:
        meeting.lockstep.exchange(Word(0, 0, False), 0.0 + 1e-3)
    assert caught.value.ranks == [2]
    meeting.far[2].sendall(struct.pack("<qqqqq", 0, 4, 0, -1, 0)[5:])
    words = meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    assert words == {1: Word(0, 0, False), 2: Word(0, 4, False)}
    assert meeting.lockstep.wait(PATIENT_S), "rank 1's next word lies unread"


def test_work_rung_during_an_exchange_does_not_disturb_it_and_is_not_lost(meeting: Meeting) -> None:
    meeting.lockstep.work.ring()
    for rank in (1, 2):
        meeting.say(rank, 0)
    meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    assert meeting.lockstep.wait(PATIENT_S)
    assert not meeting.lockstep.wait(0.0)


def test_a_peers_word_wakes_an_idle_rank_again_and_again_until_it_is_exchanged(meeting: Meeting) -> None:
    assert not meeting.lockstep.wait(0.0)
    meeting.say(2, 0, 1)
    assert meeting.lockstep.wait(PATIENT_S)
    assert meeting.lockstep.wait(PATIENT_S)
    meeting.say(1, 0)
    meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    assert not meeting.lockstep.wait(0.0)


def test_the_end_interrupts_both_waits(meeting: Meeting) -> None:
    meeting.lockstep.ended.ring()
    with pytest.raises(EpochOver):
        meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    with pytest.raises(EpochOver):
        meeting.lockstep.wait(PATIENT_S)


def test_a_closed_connection_names_its_rank(meeting: Meeting) -> None:
    meeting.far[2].close()
    with pytest.raises(LaneClosed) as caught:
        meeting.lockstep.wait(PATIENT_S)
    assert caught.value.rank == 2
    with pytest.raises(LaneClosed) as caught:
        meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    assert caught.value.rank == 2


def test_the_last_word_of_a_rank_that_left_counts(meeting: Meeting) -> None:
    """A leave in order: rank 2 has all words of the step and is gone before rank 1's word is here."""
    meeting.say(2, 0)
    meeting.far[2].shutdown(socket.SHUT_WR)
    with pytest.raises(Overdue) as caught:
        meeting.lockstep.exchange(Word(0, 0, True), 0.01)
    assert caught.value.ranks == [1]
    meeting.say(1, 0)
    assert sorted(meeting.lockstep.exchange(Word(0, 0, True), PATIENT_S)) == [1, 2]
    with pytest.raises(LaneClosed):
        meeting.lockstep.exchange(Word(1, 0, True), PATIENT_S)


def test_a_rank_that_closed_without_its_word_is_not_waited_for(meeting: Meeting) -> None:
    meeting.say(1, 0)
    meeting.far[2].shutdown(socket.SHUT_WR)
    with pytest.raises(LaneClosed) as caught:
        meeting.lockstep.exchange(Word(0, 0, False), PATIENT_S)
    assert caught.value.rank == 2
