"""The two threads at a rank's stdin and stdout: order, partial reads, answers beside the loop, and the end."""

import os
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.ids import RequestId
from tests.support.clock import ManualClock
from workers.engine.inbox import Inbox
from workers.engine.messages import Abort, Ended, HealthReport, Refused
from workers.json_lines import decode_event
from workers.stdio import CommandReader, EventWriter

WAIT_S = 30.0
HEALTH = HealthReport(0, 7, "compute", 12.5, None)
ABORT = b'{"type": "abort", "id": "%s"}\n'


class Pipe:
    """A rank's input: what a test writes, and everything that came of it."""

    def __init__(self):
        reading, self.writing = os.pipe()
        self.inbox = Inbox()
        self.answers = []
        self.ended = threading.Event()

        def close():
            os.close(reading)
            self.ended.set()

        reader = CommandReader(
            reading,
            self.inbox,
            emit=self.answers.append,
            health=lambda: HEALTH,
            on_end=close,
            clock=ManualClock(),
        )
        reader.start()

    def finish(self):
        os.close(self.writing)
        assert self.ended.wait(WAIT_S)
        return list(self.inbox.take())


@given(
    names=st.lists(st.text("abc", min_size=1), max_size=5),
    cuts=st.lists(st.integers(0, 200)),
    newline=st.booleans(),
)
def test_commands_arrive_whole_however_the_bytes_are_cut(names, cuts, newline):
    data = b"".join(ABORT % name.encode() for name in names)
    data = data if newline else data.removesuffix(b"\n")
    pipe = Pipe()
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for begin, end in pairwise(places):
        os.write(pipe.writing, data[begin:end])
    assert pipe.finish() == [Abort(RequestId(name)) for name in names]
    assert pipe.answers == []


def test_health_and_bad_lines_are_answered_beside_the_loop_and_in_order():
    pipe = Pipe()
    os.write(pipe.writing, b'\n{"type": "health"}\nwhat\n{"type": "health"}\n')
    assert pipe.finish() == []
    assert [type(answer) for answer in pipe.answers] == [HealthReport, Refused, HealthReport]
    assert pipe.answers[0] == HEALTH


def test_a_submit_after_the_loop_has_ended_is_answered_and_an_abort_needs_no_answer():
    pipe = Pipe()
    pipe.inbox.close()
    os.write(pipe.writing, b'{"type": "submit", "id": "late", "token_ids": [1]}\n' + ABORT % b"x")
    pipe.finish()
    (answer,) = pipe.answers
    assert (answer.request_id, answer.error) == ("late", "DrainingError")


class Output:
    """A rank's output and whoever reads it."""

    def __init__(self):
        self.reading, self.writing = os.pipe()
        self.broken = threading.Event()
        self.writer = EventWriter(self.writing, on_broken=self.broken.set)

    def events(self, *, close=True):
        if close:
            os.close(self.writing)
        with os.fdopen(self.reading, "rb") as pipe:
            return [decode_event(line) for line in pipe]


def refused(number):
    return Refused(RequestId(str(number)), "InvalidRequest", None, "x" * 100)


def test_events_of_many_threads_are_whole_lines_and_each_thread_s_in_order():
    output = Output()

    def emit(first):
        for number in range(first, first + 50):
            output.writer.emit(refused(number))

    threads = [threading.Thread(target=emit, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.writer.close(WAIT_S)
    numbers = [int(event.request_id) for event in output.events()]
    assert sorted(numbers) == [*range(50), *range(1000, 1050), *range(2000, 2050)]
    for first in (0, 1000, 2000):
        own = [number for number in numbers if first <= number < first + 50]
        assert own == sorted(own)


def test_emitting_never_waits_for_the_reader():
    output = Output()
    for number in range(5000):
        output.writer.emit(refused(number))
    output.writer.close(0.0)
    found = []
    reading = threading.Thread(target=lambda: found.extend(output.events(close=False)))
    reading.start()
    output.writer.close(WAIT_S)
    os.close(output.writing)
    reading.join(WAIT_S)
    assert len(found) == 5000


def test_nothing_follows_the_first_ended():
    output = Output()
    for event in (refused(1), Ended("first"), refused(2), Ended("second")):
        output.writer.emit(event)
    output.writer.close(WAIT_S)
    assert output.events() == [refused(1), Ended("first")]


def test_a_reader_that_is_gone_is_noticed():
    output = Output()
    os.close(output.reading)
    output.writer.emit(refused(1))
    assert output.broken.wait(WAIT_S)
    output.writer.emit(refused(2))
    output.writer.close(WAIT_S)
    os.close(output.writing)


@pytest.mark.parametrize("size", [1, 65535, 65536, 200_000])
def test_long_lines_arrive_whole(size):
    pipe = Pipe()
    name = b"x" * size
    writing = threading.Thread(target=os.write, args=(pipe.writing, ABORT % name))
    writing.start()
    writing.join(WAIT_S)
    assert pipe.finish() == [Abort(RequestId(name.decode()))]
