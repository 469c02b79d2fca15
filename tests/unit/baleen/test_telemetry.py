"""Log lines: one per event, and readable by a machine."""

import json

import pytest

from baleen.telemetry import Log


def lines_of(level="info", **fields):
    written = []
    return Log(level, write=written.append, wall_clock=lambda: 0.0, **fields), written


def test_a_line_has_time_level_context_and_fields_in_order():
    log, written = lines_of(rank=3)
    log.info("weights loaded", seconds=1.25, bytes=10, warm=True, cause=None)
    assert written == [
        "time=1970-01-01T00:00:00Z level=info rank=3 "
        'event="weights loaded" seconds=1.25 bytes=10 warm=true cause=null\n'
    ]


@pytest.mark.parametrize("text", ["", "two words", "a=b", 'quo"te', "back\\slash", "line\nbreak", "tab\t"])
def test_text_that_could_be_misread_is_quoted(text):
    log, written = lines_of()
    log.error("x", text=text)
    assert written[0].count("\n") == 1
    assert json.loads(written[0].split(" text=")[1]) == text


@pytest.mark.parametrize(("level", "count"), [("info", 3), ("warning", 2), ("error", 1), ("off", 0)])
def test_lines_below_the_level_are_left_out(level, count):
    log, written = lines_of(level)
    log.info("a")
    log.warning("b")
    log.error("c")
    assert len(written) == count


def test_the_log_goes_to_stderr(capfd):
    Log().info("hello")
    out, err = capfd.readouterr()
    assert out == "" and err.endswith("level=info event=hello\n")


def test_a_log_that_nobody_reads_stops_nobody(monkeypatch):
    def broken(descriptor, data):
        raise BrokenPipeError

    monkeypatch.setattr("os.write", broken)
    Log().error("the supervisor is gone")
