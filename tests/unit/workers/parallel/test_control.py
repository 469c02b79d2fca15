"""The control thread, with the peers' ends of its connections held by the test. Only events are waited for."""

from __future__ import annotations

import queue
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from baleen.clock import Clock, SystemClock
from baleen.config import ParallelConfig
from baleen.ids import Incarnation
from tests.support.clock import ManualClock
from workers.parallel.control import ControlPlane
from workers.parallel.doorbell import Doorbell
from workers.parallel.membership import Membership
from workers.parallel.messages import Ended, Heartbeat, Leaving, Message, MessageReader, Reached, encode
from workers.parallel.progress import Progress

PATIENT_S = 30.0


class FarEnd:
    """A peer's end of a control connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = MessageReader()
        sock.settimeout(PATIENT_S)

    def say(self, message: Message) -> None:
        self.sock.sendall(encode(message))

    def heard_until_closed(self) -> list[Message]:
        """Everything that comes, up to the end of the connection."""
        messages: list[Message] = []
        while chunk := self.sock.recv(65536):
            messages += self._reader.feed(chunk)
        return messages

    def next_of(self, kind: type) -> Message:
        while chunk := self.sock.recv(65536):
            for message in self._reader.feed(chunk):
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"the connection ended without a {kind.__name__}")


class Control:
    """Rank 0's control thread in a group with ranks 1 and 2."""

    def __init__(self, clock: Clock, **changes: float) -> None:
        config = ParallelConfig(world_size=3, rendezvous="file:///unused", **{"heartbeat_interval_s": 0.05, **changes})
        pairs = {rank: socket.socketpair() for rank in (1, 2)}
        self.far = {rank: FarEnd(theirs) for rank, (_, theirs) in pairs.items()}
        lives = {rank: Incarnation(f"life-{rank}") for rank in pairs}
        self.progress = Progress(clock)
        self.ended = Doorbell()
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.plane = ControlPlane(
            config,
            {rank: ours for rank, (ours, _) in pairs.items()},
            Membership(lives, timeout_s=config.heartbeat_timeout_s, now=clock.now()),
            self.progress,
            ended=self.ended,
            on_end=self.told.put,
            clock=clock,
        )
        self.plane.start()

    def cause(self) -> str | None:
        """The cause, once there is one; checks that everybody in this process was told."""
        cause = self.plane.wait_for_cause(PATIENT_S)
        assert select.select([self.ended], [], [], PATIENT_S)[0]
        assert self.told.get(timeout=PATIENT_S) == cause
        return cause

    def close(self) -> None:
        self.plane.leave(0.0)
        self.ended.close()
        for far in self.far.values():
            far.sock.close()


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control(SystemClock(), heartbeat_timeout_s=PATIENT_S)
    yield made
    made.close()


def test_heartbeats_tell_what_the_main_thread_does(control: Control) -> None:
    control.progress.enter("run", 7)
    control.progress.enter_collective()
    for _ in range(100):
        beat = control.far[1].next_of(Heartbeat)
        assert isinstance(beat, Heartbeat)
        if beat.step == 7:
            break
    assert (beat.step, beat.phase, beat.collectives) == (7, "run", 1)
    assert 0.0 <= beat.seconds_in_phase < PATIENT_S


def test_a_closed_connection_ends_the_epoch_and_the_others_are_told(control: Control) -> None:
    control.far[2].sock.close()
    cause = "rank 2 closed its connection (its process ended)"
    assert control.cause() == cause
    assert control.far[1].heard_until_closed()[-1] == Ended(cause)
    assert control.told.empty()


def test_the_first_cause_is_passed_on_unchanged(control: Control) -> None:
    control.far[1].say(Ended("rank 2 silent for 3.0 s"))
    assert control.cause() == "rank 2 silent for 3.0 s"
    assert control.far[2].heard_until_closed()[-1] == Ended("rank 2 silent for 3.0 s")
    assert control.plane.end("rank 0 sees it too") == "rank 2 silent for 3.0 s"
    assert control.told.empty(), "told once"


def test_last_words_count_before_the_closed_connection(control: Control) -> None:
    control.far[1].say(Ended("rank 1: out of memory"))
    control.far[1].sock.close()
    assert control.cause() == "rank 1: out of memory"


def test_an_end_of_this_rank_is_told_before_it_returns(control: Control) -> None:
    assert control.plane.end("rank 0 is broken") == "rank 0 is broken"
    assert control.plane.end("again") == "rank 0 is broken"
    for far in control.far.values():
        assert far.heard_until_closed()[-1] == Ended("rank 0 is broken")
    assert control.cause() == "rank 0 is broken"
    assert control.told.empty(), "told once"


def test_what_no_rank_would_say_ends_the_epoch(control: Control) -> None:
    control.far[1].sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    cause = control.cause()
    assert cause is not None and cause.startswith("rank 1 sent a malformed control message: not JSON")


def test_milestones(control: Control) -> None:
    control.far[2].say(Reached("loaded"))
    assert 1 in control.plane.await_all("loaded", 0.0)
    assert control.far[1].next_of(Reached) == Reached("loaded")
    control.far[1].say(Reached("loaded"))
    assert control.plane.await_all("loaded", PATIENT_S) == []
    control.far[1].sock.close()
    assert control.plane.await_all("never", PATIENT_S) == [1, 2]


def test_goodbyes_are_no_fault(control: Control) -> None:
    leaver = threading.Thread(target=control.plane.leave, args=(PATIENT_S,))
    leaver.start()
    for far in control.far.values():
        assert far.heard_until_closed()[-1] == Leaving()
        far.say(Leaving())
        far.sock.close()
    leaver.join()
    assert control.plane.cause is None and control.told.empty()


def test_after_the_goodbye_nothing_is_a_fault(control: Control) -> None:
    leaver = threading.Thread(target=control.plane.leave, args=(PATIENT_S,))
    leaver.start()
    assert control.far[1].heard_until_closed()[-1] == Leaving()
    control.far[1].say(Ended("rank 1: too late"))
    for far in control.far.values():
        far.sock.close()
    leaver.join()
    assert control.plane.cause is None and control.told.empty()


def test_a_peer_that_leaves_first_is_no_fault_and_waits_for_this_rank(control: Control) -> None:
    """It must not see this rank's connection close before this rank leaves too: others still need its words."""
    control.far[1].say(Leaving())
    control.far[1].sock.shutdown(socket.SHUT_WR)
    for _ in range(3):
        assert control.far[1].next_of(Heartbeat)
    control.far[2].say(Ended("rank 2: something else"))
    assert control.cause() == "rank 2: something else"
    assert control.far[1].heard_until_closed()[-1] == Ended("rank 2: something else")


def test_silence_ends_the_epoch() -> None:
    """A short timeout bounds the test; peers that never speak are lost however long it takes to notice."""
    control = Control(SystemClock(), heartbeat_timeout_s=0.2)
    try:
        cause = control.cause()
        assert cause is not None and cause.startswith("ranks 1, 2 silent for 0.2 s (stopped, or unreachable)")
    finally:
        control.close()


def test_a_process_that_was_suspended_blames_itself() -> None:
    clock = ManualClock()
    control = Control(clock, heartbeat_timeout_s=3.0)
    try:
        control.far[1].next_of(Heartbeat)
        clock.advance(10.0)
        assert control.plane.suspended_s() == 10.0
        control.far[1].say(Ended("rank 0 silent for 3.0 s"))
        cause = control.cause()
        assert cause is not None and cause.startswith("rank 0 was suspended for ")
    finally:
        control.close()


def test_a_main_thread_that_waits_too_long_in_a_collective() -> None:
    control = Control(SystemClock(), heartbeat_timeout_s=PATIENT_S, collective_timeout_s=0.2)
    try:
        control.progress.enter("run", 5)
        for rank, collectives in ((1, 1), (2, 0)):
            control.far[rank].say(Heartbeat(5, "compute", 1.0, collectives))
        control.progress.enter_collective()
        cause = control.cause()
        assert cause is not None
        assert cause.startswith("rank 2 did not come to a collective of step 5 within 0.2 s: rank 2 is at step 5 in")
    finally:
        control.close()


def test_a_control_thread_that_fails_ends_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would send heartbeats any more: this rank and the others have to know why."""
    failures: list[BaseException | None] = []
    monkeypatch.setattr("threading.excepthook", lambda args: failures.append(args.exc_value))
    control = Control(SystemClock(), heartbeat_timeout_s=PATIENT_S)
    try:

        def broken(rank: int, beat: Heartbeat) -> None:
            raise RuntimeError("planted")

        monkeypatch.setattr(control.plane.membership, "beat", broken)
        control.far[1].say(Heartbeat(0, "run", 0.0, 0))
        cause = "rank 0: the control thread failed: RuntimeError('planted')"
        assert control.cause() == cause
        assert control.far[2].heard_until_closed()[-1] == Ended(cause)
        assert control.told.empty()
    finally:
        control.close()
    assert [repr(failure) for failure in failures] == ["RuntimeError('planted')"]
