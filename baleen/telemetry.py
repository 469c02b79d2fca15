"""Structured logs: one `key=value` line per event, on stderr."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress

from baleen.config import Level

Value = str | int | float | bool | None

_LEVELS: tuple[Level, ...] = ("info", "warning", "error", "off")


def write_stderr(text: str) -> None:
    """Write to stderr, if anybody takes it: a process whose log has no reader must still work and end in order."""
    # Straight to the descriptor: a stuck thread may hold the lock of sys.stderr, and one call keeps a line whole.
    with suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


class Log:
    """Writes lines such as `time=2026-01-31T08:00:00Z level=info rank=0 event="weights loaded" seconds=1.2`."""

    def __init__(
        self,
        level: Level = "info",
        *,
        write: Callable[[str], object] = write_stderr,
        wall_clock: Callable[[], float] = time.time,
        **fields: Value,
    ) -> None:
        """Lines below `level` are left out. `fields` go into every line; `wall_clock` gives seconds since 1970."""
        self._least = _LEVELS.index(level)
        self._write_line = write
        self._wall_clock = wall_clock
        self._fields = fields

    def info(self, event: str, **fields: Value) -> None:
        """Something that an operator may want to know."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Value) -> None:
        """Something that an operator should look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Value) -> None:
        """The reason for which the process, or a part of its work, ends."""
        self._write("error", event, fields)

    def _write(self, level: Level, event: str, fields: dict[str, Value]) -> None:
        if _LEVELS.index(level) < self._least:
            return
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_clock()))
        head: dict[str, Value] = {"time": moment, "level": level, **self._fields, "event": event}
        line = " ".join(f"{key}={_text(value)}" for key, value in {**head, **fields}.items())
        self._write_line(line + "\n")


def _text(value: Value) -> str:
    """A value as it stands in a line: text is quoted, as JSON does it, where a reader could mistake its end."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    plain = value.isprintable() and value and not any(mark in value for mark in ' ="\\')
    return value if plain else json.dumps(value, ensure_ascii=False)
