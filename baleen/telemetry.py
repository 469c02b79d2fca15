"""Structured logs: one JSON object per event and line, on stderr."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from baleen.config import Level

Value = str | int | float | bool | None

MOST_REPEATS = 20
REPEAT_WINDOW_S = 10.0

_LEVELS: tuple[Level, ...] = ("info", "warning", "error", "off")


def write_stderr(text: str) -> None:
    """Write to stderr, if anybody takes it: a process whose log has no reader must still work and end in order."""
    # Straight to the descriptor: a stuck thread may hold the lock of sys.stderr, and one call keeps a line whole.
    with suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


class Log:
    """Writes JSON lines: {"time":"2026-01-31T08:00:00Z","level":"info","rank":0,"event":"ready","blocks":256}.

    Of warnings with the same event, those beyond `MOST_REPEATS` in `REPEAT_WINDOW_S` seconds are left out; the next one
    that is written says how many they were (`left_out`). Neither text nor token ids of requests belong here.
    """

    def __init__(
        self,
        level: Level = "info",
        *,
        write: Callable[[str], object] = write_stderr,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        **fields: Value,
    ) -> None:
        """Lines below `level` are left out. `fields` go into every line; `wall_clock` gives seconds since 1970."""
        self._least = _LEVELS.index(level)
        self._write_line = write
        self._wall_clock = wall_clock
        self._clock = clock
        self._fields = fields
        self._repeats: dict[str, _Repeats] = {}

    def info(self, event: str, **fields: Value) -> None:
        """Something that an operator may want to know."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Value) -> None:
        """Something that an operator should look at. Written in the program, so that there are few different ones."""
        now = self._clock()
        repeats = self._repeats.get(event)
        if repeats is None or now - repeats.since >= REPEAT_WINDOW_S:
            left_out = repeats.left_out if repeats is not None else 0
            self._repeats[event] = repeats = _Repeats(now)
            if left_out:
                fields["left_out"] = left_out
        if repeats.written < MOST_REPEATS:
            repeats.written += 1
            self._write("warning", event, fields)
        else:
            repeats.left_out += 1

    def error(self, event: str, **fields: Value) -> None:
        """The reason for which the process, or a part of its work, ends."""
        self._write("error", event, fields)

    def _write(self, level: Level, event: str, fields: dict[str, Value]) -> None:
        if _LEVELS.index(level) < self._least:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_clock()))
        values: dict[str, Value] = {"time": moment, "level": level, **self._fields, "event": event, **fields}
        rounded = {key: _rounded(value) for key, value in values.items()}
        self._write_line(json.dumps(rounded, separators=(",", ":")) + "\n")


def readable(line: str) -> str:
    """A line of a log for people: of one of ours only what happened and what is said of it."""
    try:
        values = json.loads(line)
        event = values.pop("event")
    except (ValueError, KeyError, AttributeError, TypeError):
        return line
    said = ", ".join(f"{key} {value}" for key, value in values.items() if key not in ("time", "level", "rank", "part"))
    return f"{event}: {said}" if said else str(event)


@dataclass(slots=True, eq=False)
class _Repeats:
    """What became of the warnings of one event since the beginning of its window."""

    since: float
    written: int = 0
    left_out: int = 0


def _rounded(value: Value) -> Value:
    """Six digits say enough, and JSON knows no infinite numbers."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
