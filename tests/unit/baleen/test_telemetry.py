"""Log lines: one JSON object per event, and not too many of the same."""

import json

import pytest

from baleen.telemetry import MOST_REPEATS, REPEAT_WINDOW_S, Log, readable
from tests.support.clock import ManualClock


def lines_of(level="info", **fields):
    written = []
    return Log(level, write=written.append, wall_clock=lambda: 0.0, **fields), written


def test_a_line_has_time_level_context_and_fields_in_order():
    log, written = lines_of(rank=3)
    log.info("weights loaded", seconds=1.25, bytes=10, warm=True, cause=None)
    assert written == [
        '{"time":"1970-01-01T00:00:00Z","level":"info","rank":3,"event":"weights loaded",'
        '"seconds":1.25,"bytes":10,"warm":true,"cause":null}\n'
    ]


@pytest.mark.parametrize("text", ["", "two words", 'quo"te', "back\\slash", "line\nbreak", "tab\t", "\ud800", "é"])
def test_any_text_stays_on_its_line(text):
    log, written = lines_of()
    log.error("x", text=text)
    assert written[0].count("\n") == 1
    assert json.loads(written[0])["text"] == text


def test_numbers_are_short_and_always_json():
    log, written = lines_of()
    log.info("x", third=1 / 3, large=1e20, never=float("inf"))
    assert json.loads(written[0], parse_constant=pytest.fail) | {"third": 0.333333, "never": "inf"} == json.loads(
        written[0]
    )


@pytest.mark.parametrize(("level", "count"), [("info", 3), ("warning", 2), ("error", 1), ("off", 0)])
def test_lines_below_the_level_are_left_out(level, count):
    log, written = lines_of(level)
    log.info("a")
    log.warning("b")
    log.error("c")
    assert len(written) == count


def test_a_warning_that_repeats_is_counted_and_no_other_line_is():
    clock, written = ManualClock(), []
    log = Log(write=written.append, clock=clock.now)
    for number in range(MOST_REPEATS + 7):
        log.warning("rank lost", number=number)
    log.warning("another")
    for _ in range(3 * MOST_REPEATS):
        log.info("request ended")
    assert len(written) == MOST_REPEATS + 1 + 3 * MOST_REPEATS
    clock.advance(REPEAT_WINDOW_S)
    log.warning("rank lost", number=99)
    log.warning("rank lost", number=100)
    last = [json.loads(line) for line in written[-2:]]
    assert [(line["number"], line.get("left_out")) for line in last] == [(99, 7), (100, None)]


def test_people_are_told_what_happened():
    log, written = lines_of(rank=3)
    log.error("rank failed", phase="load", error="no such file")
    log.info("drained")
    assert list(map(readable, written)) == ["rank failed: phase load, error no such file", "drained"]
    assert readable("Traceback: x") == "Traceback: x" and readable("7") == "7" and readable("[1]") == "[1]"


def test_the_log_goes_to_stderr(capfd):
    Log().info("hello")
    out, err = capfd.readouterr()
    assert out == "" and json.loads(err)["event"] == "hello"


def test_a_log_that_nobody_reads_stops_nobody(monkeypatch):
    def broken(descriptor, data):
        raise BrokenPipeError

    monkeypatch.setattr("os.write", broken)
    Log().error("the supervisor is gone")
