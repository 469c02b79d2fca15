"""One router: a replica of the router's deployment that starts, watches and ends a router process.

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
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import IO

from baleen.config_file import to_dict
from baleen.errors import BaleenError, ConfigError
from baleen.telemetry import readable
from cluster.claim import Claim, await_free
from cluster.journal import Send, SentLog
from cluster.rank_child import import_path
from router.config import RouterProcessConfig

START_TIMEOUT_S = 60.0
LEAVE_SLACK_S = 5.0
CLAIM_S = 10.0
"""Longest wait for an address: of one that is told to leave, and of one whose replica died, it is soon free."""

_KEPT_LINES = 50


class RouterProcess:
    """A router as a child process."""

    def __init__(self, config: RouterProcessConfig, *, number: int, log_directory: str, send_log: Send | None) -> None:
        """Start it and wait until it listens. Raises BaleenError with its last words if it does not.

        send_log: takes its log where there is no log_directory.
        """
        self._sent_log = SentLog(f"router-{number}", send_log) if send_log is not None else None
        self._config = config
        self._log_path = Path(log_directory) / f"router-{number}.log" if log_directory else None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        parent = self._log_path.parent.parent if self._log_path is not None else None
        self._directory = tempfile.TemporaryDirectory(prefix="baleen-router-", dir=parent)
        path = Path(self._directory.name) / "router.json"
        path.write_text(json.dumps(to_dict(config)), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.router_process", "--config", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": import_path()},
            process_group=0,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        self._reader = Thread(target=self._keep_lines, args=(self._process.stderr,), name="router-log", daemon=True)
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
            raise BaleenError(f"the router ended with code {code}: {self._last_line()}")

    def ask_to_leave(self) -> None:
        """Let running requests end within the configured time; it stops to listen at once. Does not wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def leave(self) -> None:
        """The same, and wait for its end."""
        self.ask_to_leave()
        try:
            self._process.wait(self._config.drain_timeout_s + LEAVE_SLACK_S)
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
        raise kind(f"the router does not start: {self._last_line()}")

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


class RouterReplica:
    """What Serve runs: a router, on the first port that no other replica has.

    Serve's own number of a replica is no use: what takes the place of a replica gets another one while that one ends.
    """

    def __init__(self, config: RouterProcessConfig, replicas: int, log_directory: str) -> None:
        """config: of replica 0. Raises BaleenError if it does not come up."""
        self._router: RouterProcess | None = None
        self._claim = Claim([_moved(config.listen, number) for number in range(replicas)], timeout_s=CLAIM_S)
        number = self._claim.number
        mine = replace(
            config, listen=_moved(config.listen, number), listen_metrics=_moved(config.listen_metrics, number)
        )
        # the router of a replica that died stops to listen as soon as it knows
        await_free([address for address in (mine.listen, mine.listen_metrics) if address], timeout_s=CLAIM_S)
        send_log = None
        if not log_directory:
            # ray is there only in the processes that Ray has started
            from cluster import ray_adapter

            send_log = ray_adapter.journal(config.cluster)
        self._router = RouterProcess(mine, number=number, log_directory=log_directory, send_log=send_log)

    def check_health(self) -> None:
        """For Serve: raises once the router has ended."""
        if self._router is not None:
            self._router.check()

    def __del__(self) -> None:
        """For Serve, which calls it when the replica is told to go."""
        router, self._router = self._router, None
        if router is not None:
            router.ask_to_leave()
            self._claim.release()
            router.leave()


def _moved(address: str, number: int) -> str:
    """The address with its port `number` higher; none stays none."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}" if address else ""
