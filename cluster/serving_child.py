"""A server of the cluster as a child process: started, watched, told to leave, with its log kept.

The process is apart from Ray's, whose threads would take turns with the streams of tokens.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import IO, Any

from baleen.errors import BaleenError, ConfigError
from baleen.telemetry import readable
from cluster.journal import Send, SentLog
from cluster.rank_child import import_path

START_TIMEOUT_S = 60.0
LEAVE_SLACK_S = 5.0
_KEPT_LINES = 50


class ServingChild:
    """A process that serves until it is told to leave. kind: what it is, for names and errors."""

    def __init__(
        self,
        kind: str,
        config: Mapping[str, Any],
        *,
        number: int,
        drain_timeout_s: float,
        log_directory: str,
        send_log: Send | None,
    ) -> None:
        """Start it and wait until it listens. Raises BaleenError with its last words if it does not.

        It runs cluster.KIND_process, which reads `config` from a file. send_log: takes its log where there is no
        log_directory.
        """
        self._kind = kind
        self._drain_timeout_s = drain_timeout_s
        self._sent_log = SentLog(f"{kind}-{number}", send_log) if send_log is not None else None
        self._log_path = Path(log_directory) / f"{kind}-{number}.log" if log_directory else None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        parent = self._log_path.parent.parent if self._log_path is not None else None
        self._directory = tempfile.TemporaryDirectory(prefix=f"baleen-{kind}-", dir=parent)
        path = Path(self._directory.name) / f"{kind}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"cluster.{kind}_process", "--config", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": import_path()},
            process_group=0,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._reader = Thread(target=self._keep_lines, args=(self._process.stderr,), name=f"{kind}-log", daemon=True)
        self._reader.start()
        self.address = self._await_address(self._process.stdout)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise BaleenError if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise BaleenError(f"the {self._kind} ended with code {code}: {self._last_line()}")

    def ask_to_leave(self) -> None:
        """Let running requests end within the configured time; it stops to listen at once. Does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def leave(self) -> None:
        """The same, and wait for its end."""
        self.ask_to_leave()
        try:
            self._process.wait(self._drain_timeout_s + LEAVE_SLACK_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(LEAVE_SLACK_S)
        self._reader.join()
        self._directory.cleanup()

    def _await_address(self, output: IO[bytes]) -> str:
        ready, _, _ = select.select([output], [], [], START_TIMEOUT_S)
        line = output.readline() if ready else b""
        if line:
            return line.decode().strip()
        self._process.kill()
        code = self._process.wait()
        self._reader.join()
        self._directory.cleanup()
        kind = ConfigError if code == ConfigError.exit_code else BaleenError
        raise kind(f"the {self._kind} does not start: {self._last_line()}")

    def _last_line(self) -> str:
        return readable(self._lines[-1]) if self._lines else "no last words"

    def _keep_lines(self, pipe: IO[bytes]) -> None:
        with pipe, self._log_path.open("ab", buffering=0) if self._log_path else open(os.devnull, "wb") as log:
            for line in pipe:
                log.write(line)
                if self._sent_log is not None:
                    self._sent_log.write(line)
                if line.strip():
                    self._lines.append(line.decode(errors="replace").strip())
