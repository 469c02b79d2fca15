"""How a rank ends: which wish becomes a drain, which an exit, who is told, and with which code."""

import pytest

from baleen.errors import CheckpointError
from baleen.telemetry import Log
from workers.engine.inbox import Inbox
from workers.engine.messages import Drain, Ended
from workers.lifecycle import Lifecycle


class Process:
    """A lifecycle without a process: exits, events and the group's end are written down."""

    def __init__(self, *, joined=True):
        self.exits = []
        self.events = []
        self.lines = []
        self.ends = []
        self.inbox = Inbox()
        self.lifecycle = Lifecycle(1, self.inbox, Log(write=self.lines.append), exit_process=self.exits.append)
        self.lifecycle.writes_to(self)
        if joined:
            self.lifecycle.joined(self)

    def emit(self, event):
        self.events.append(event)

    def close(self, timeout_s):
        self.events.append("flushed")

    def end(self, cause):
        """As a group's: the end is reported back at once."""
        self.ends.append(cause)
        self.lifecycle.epoch_ended(cause)


def test_a_wish_to_end_while_serving_is_a_drain():
    process = Process()
    process.lifecycle.serving()
    process.lifecycle.stop(Drain("SIGTERM received"))
    assert process.inbox.take() == [Drain("SIGTERM received")]
    assert process.exits == process.ends == process.events == []


def test_a_wish_to_end_while_starting_ends_the_process_and_tells_the_group():
    process = Process()
    process.lifecycle.stop(Drain("SIGTERM received"))
    assert process.exits == [0]
    assert process.ends == ["rank 1 was stopped while it started: SIGTERM received"]
    assert process.events == [Ended("SIGTERM received"), "flushed"]


def test_before_the_group_is_joined_nobody_is_told():
    process = Process(joined=False)
    process.lifecycle.stop(Drain("SIGTERM received"))
    assert process.exits == [0] and process.ends == []


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CheckpointError("x is missing"), 3, "x is missing"),
        (RuntimeError("no memory"), 70, "RuntimeError: no memory"),
    ],
)
def test_a_fault_of_this_rank_is_told_to_the_group_and_has_its_own_code(error, code, text):
    process = Process()
    process.lifecycle.serving()
    process.lifecycle.fail(error, "compute")
    assert process.ends == [f"rank 1 failed (compute): {text}"]
    assert process.events == [Ended(text), "flushed"]
    assert process.exits == [code], "the end of the epoch that it caused itself must not count as another rank's"
    assert len(process.lines) == 1 and "rank failed" in process.lines[0] and text in process.lines[0]


def test_the_end_of_the_epoch_is_said_once_by_whoever_learns_of_it():
    process = Process()
    process.lifecycle.serving()
    process.lifecycle.leave_epoch("rank 0 closed its connection")
    process.lifecycle.leave_epoch("rank 0 closed its connection")
    assert process.exits == [75]
    assert process.events[0] == Ended("rank 0 closed its connection")
    assert len(process.lines) == 1 and "rank 1: epoch ended: rank 0 closed its connection" in process.lines[0]
