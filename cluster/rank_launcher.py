"""One rank process, started and watched on its node; lives in the rank's actor. The process ends with it.

The rank reads its standard input from here: when this process dies, however it does, that input ends and so does the
rank.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Condition

from baleen.clock import SystemClock
from baleen.config import RankConfig
from baleen.config_file import to_dict
from baleen.errors import BaleenError
from baleen.telemetry import readable
from cluster.journal import Send, SentLog
from cluster.rank_child import Exited, Garbled, LogFile, RankChild
from workers.engine.messages import Drain, Ended, Event, Ready

KILL_AFTER_S = 5.0
"""How long a rank that was told to leave may outlive the time it was given."""


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How a rank process ended. code: its exit code, or minus a signal's number. cause: what it said itself, if so."""

    rank: int
    code: int
    cause: str | None
    last_line: str


class RankLauncher:
    """Starts one rank; several threads may ask about it at once."""

    def __init__(self, host: str, log_directory: str | None, send_log: Send | None = None) -> None:
        """host: the address of this node that the other nodes know. log_directory: where the rank's log is kept.

        send_log: takes the log where this node has no such directory.
        """
        self._host = host
        self._log_directory = Path(log_directory) if log_directory else None
        self._send_log = send_log
        self._log: LogFile | None = None
        self._child: RankChild | None = None
        self._rank = -1
        self._changed = Condition()
        self._ready: Ready | None = None
        self._cause: str | None = None
        self._code: int | None = None
        # among the cluster's own files if there is such a place, so that it goes with them whatever happens here
        parent = self._log_directory.parent if self._log_directory is not None else None
        self._directory = tempfile.TemporaryDirectory(prefix="baleen-rank-", dir=parent)

    @property
    def host(self) -> str:
        """The address that others reach this rank at."""
        return self._host

    def free_ports(self, count: int) -> list[int]:
        """TCP ports of `host` that were free a moment ago, all different."""
        sockets = [socket.create_server((self._host, 0)) for _ in range(count)]
        ports = [listener.getsockname()[1] for listener in sockets]
        for listener in sockets:
            listener.close()
        return ports

    def start(self, label: str, config: RankConfig) -> int:
        """Start the rank; returns its process id. label: name of its log file."""
        assert self._child is None, "a launcher starts one rank"
        self._rank = config.parallel.rank
        path = Path(self._directory.name) / "rank.json"
        path.write_text(json.dumps(to_dict(config)), encoding="utf-8")
        if self._log_directory is not None:
            self._log_directory.mkdir(parents=True, exist_ok=True)
            self._log = (self._log_directory / f"{label}.log").open("ab", buffering=0)
        elif self._send_log is not None:
            self._log = SentLog(label, self._send_log)
        # Ray gives its actors a number of its own; the rank's share of the processors is in its configuration
        os.environ["OMP_NUM_THREADS"] = str(max(1, config.model.num_threads))
        self._child = RankChild(self._rank, path, self._take, clock=SystemClock(), log=self._log)
        return self._child.pid

    def wait_ready(self, timeout_s: float) -> Ready | RankEnd:
        """Wait until the rank serves, or has ended. Raises BaleenError with its last words after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self._code is not None, timeout_s)
            if self._code is not None:
                return self._end()
            if self._ready is not None:
                return self._ready
        raise BaleenError(
            f"rank {self._rank} is not ready after {timeout_s:g} s; its last words: {self._last_line() or 'none'}"
        )

    def wait_end(self) -> RankEnd:
        """Wait for the end of the process, however long it lives."""
        with self._changed:
            self._changed.wait_for(lambda: self._code is not None)
            return self._end()

    def last_lines(self) -> tuple[str, ...]:
        """The newest lines of the rank's log, oldest first."""
        return self._child.last_lines if self._child is not None else ()

    def stop(self, reason: str, timeout_s: float) -> None:
        """Let the rank finish its requests within `timeout_s` and leave; kill it if it does not."""
        child = self._child
        if child is None:
            return
        child.send(Drain(reason, timeout_s))
        if self._ready is None:
            # it has no request to finish, and may be waiting for a rank that never comes
            child.ask_to_end()
        if not child.wait(timeout_s + KILL_AFTER_S):
            child.kill()
            child.wait(KILL_AFTER_S)
        self._directory.cleanup()

    def _take(self, rank: int, news: Event | Exited | Garbled) -> None:
        with self._changed:
            match news:
                case Ready():
                    self._ready = news
                case Ended(cause):
                    self._cause = self._cause or cause
                case Garbled(message):
                    self._cause = self._cause or message
                case Exited(code):
                    self._code = code
            self._changed.notify_all()

    def _end(self) -> RankEnd:
        assert self._code is not None
        return RankEnd(self._rank, self._code, self._cause, self._last_line())

    def _last_line(self) -> str:
        lines = self.last_lines()
        return readable(lines[-1]) if lines else ""
