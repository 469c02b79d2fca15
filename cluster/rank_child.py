"""One rank as a child process: its command pipe, its events and the last words of its log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Protocol

import workers
from baleen.clock import Clock
from baleen.errors import BaleenError
from baleen.telemetry import readable
from workers.engine.messages import Event, LocalCommand
from workers.json_lines import decode_event, encode_command

_KEPT_LINES = 50


class LogFile(Protocol):
    """Where a rank's own log goes besides."""

    def write(self, line: bytes, /) -> object:
        """Take a line, at once."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone. code: its exit code, or minus the number of the signal that killed it."""

    code: int


@dataclass(frozen=True, slots=True)
class Garbled:
    """The rank wrote something that is no event."""

    message: str


class RankChild:
    """A rank process and three threads: one writes commands, so that no caller waits for a rank; two read."""

    def __init__(
        self,
        rank: int,
        config: Path,
        on_news: Callable[[int, Event | Exited | Garbled], None],
        *,
        clock: Clock,
        log: LogFile | None = None,
    ) -> None:
        """Start it. `on_news` gets every event and at last `Exited`, from a thread of the child's own.

        Rank 0 writes to this process's terminal, if there is one, so that its progress bar is seen. log: an unbuffered
        file that gets every line of the rank's own log.
        """
        self.rank = rank
        self._on_news = on_news
        self._clock = clock
        self._log = log
        self._commands: SimpleQueue[LocalCommand | None] = SimpleQueue()
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        on_terminal = rank == 0 and sys.stderr is not None and sys.stderr.isatty()
        self._process = subprocess.Popen(
            # -P: a folder `workers` in the user's directory must not be taken for ours
            [sys.executable, "-P", "-m", "workers.main", "--config", str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if on_terminal else subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": import_path()},
            # Ctrl-C in the terminal is for this process, which ends its ranks in order
            process_group=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._threads = [
            Thread(target=self._write, args=(self._process.stdin,), name=f"rank-{rank}-commands", daemon=True),
            Thread(target=self._read, args=(self._process.stdout,), name=f"rank-{rank}-events", daemon=True),
        ]
        self._log_reader: Thread | None = None
        if self._process.stderr is not None:
            self._log_reader = Thread(
                target=self._keep_lines, args=(self._process.stderr,), name=f"rank-{rank}-log", daemon=True
            )
            self._log_reader.start()
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def last_line(self) -> str:
        """The newest line of its log, or an empty text."""
        return readable(self._last_lines[-1]) if self._last_lines else ""

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest lines of its log, oldest first."""
        return tuple(self._last_lines)

    def send(self, command: LocalCommand) -> None:
        """Queue a command; never blocks."""
        self._commands.put(command)

    def ask_to_end(self) -> None:
        """Close its input and send SIGTERM: it ends its requests and leaves."""
        self._commands.put(None)
        self._process.terminate()

    def kill(self) -> None:
        """End it at once; also a stopped one."""
        self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it takes longer."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._commands.put(None)
        for thread in self._threads:
            thread.join()
        return True

    def _write(self, pipe: IO[bytes]) -> None:
        try:
            while (command := self._commands.get()) is not None:
                pipe.write(encode_command(command, now=self._clock.now()).encode() + b"\n")
                pipe.flush()
        except BrokenPipeError:
            # its end is reported by the reader of its events
            pass
        finally:
            _close(pipe)

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                try:
                    self._on_news(self.rank, decode_event(line))
                except BaleenError as error:
                    self._on_news(self.rank, Garbled(str(error)))
        code = self._process.wait()
        if self._log_reader is not None:
            # so that the last words are known before the end is
            self._log_reader.join()
        self._on_news(self.rank, Exited(code))

    def _keep_lines(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                if self._log is not None:
                    self._log.write(line)
                if line.strip():
                    self._last_lines.append(line.decode(errors="replace").strip())


def _close(pipe: IO[bytes]) -> None:
    """Close a pipe whose other end may be gone."""
    try:
        pipe.close()
    except BrokenPipeError:
        return


def import_path() -> str:
    """PYTHONPATH with the directory that this very copy of baleen was imported from, first."""
    assert workers.__file__ is not None
    here = str(Path(workers.__file__).parents[1])
    return os.pathsep.join(path for path in (here, os.environ.get("PYTHONPATH", "")) if path)
