"""Rank and router processes forked from a server that has imported everything: real processes that start in a moment.

The parent talks to them as a supervisor does: standard input held open, lines of output read in its event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.processes import FORK_PRELOAD


class ForkedProcess:
    """One process. on_line gets every line that it writes to its first output; the other goes to the file `log`."""

    def __init__(
        self, name: str, target: Callable[..., None], config: Path, log: Path, on_line: Callable[[str], None]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(FORK_PRELOAD)
        stdin, self._stdin = context.Pipe(duplex=False)
        self._output, output = context.Pipe(duplex=False)
        self.name = name
        self._process = context.Process(target=target, args=(stdin, output, str(log), str(config)), name=name)
        self._process.daemon = True
        self._process.start()
        stdin.close()
        output.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.code: int | None = None
        self.ended_at = 0.0
        self.ended = asyncio.Event()
        self._on_line = on_line
        self._unread = b""
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._output.fileno(), False)
        self._loop.add_reader(self._output.fileno(), self._read)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def is_stopped(self) -> bool:
        """Whether the system says that it is stopped (SIGSTOP)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Signal this process, by its own descriptor, so that a reused pid is never hit."""
        if self.code is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self, timeout_s: float) -> int:
        """Its exit code, minus the signal's number if one killed it. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()
        assert self.code is not None
        return self.code

    async def kill(self) -> None:
        """End it by force, if it still lives."""
        self.send(signal.SIGKILL)
        await self.wait(20.0)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._output.fileno(), 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._output.fileno())
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._on_line(line.decode(errors="replace"))

    def _reap(self) -> None:
        self.ended_at = time.monotonic()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.join(10)
        self.code = self._process.exitcode
        self._process.close()
        if self._loop.remove_reader(self._output.fileno()):
            self._drain()
        self._output.close()
        self._stdin.close()
        self.ended.set()

    def _drain(self) -> None:
        """What it wrote last."""
        with suppress(OSError):
            while data := os.read(self._output.fileno(), 1 << 16):
                self._unread += data
        for line in self._unread.split(b"\n"):
            if line:
                self._on_line(line.decode(errors="replace"))


def start_fork_server() -> None:
    """Have the server import everything now, before this process has threads of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(FORK_PRELOAD)
    forkserver.ensure_running()


def rank_program(stdin: Connection, stdout: Connection, log: str, config: str) -> None:
    """A rank; `config` may have `patch`, {module: {name: value}}, beside the rank's own configuration in `rank`."""
    content: dict[str, Any] = json.loads(Path(config).read_text())
    for module, values in content["patch"].items():
        for name, value in values.items():
            loaded = importlib.import_module(module)
            assert hasattr(loaded, name), f"{module} has no {name}"
            setattr(loaded, name, value)
    path = Path(config).with_suffix(".rank.json")
    path.write_text(json.dumps(content["rank"]))
    _become(stdin, stdout, log)
    from workers.main import main

    main(["--config", str(path)])


def router_program(stdin: Connection, stdout: Connection, log: str, config: str) -> None:
    """A router, as `baleen up` runs it; its log is its first output."""
    _become(stdin, stdout, log)
    os.dup2(1, 2)
    import uvloop

    from cluster.router_process import serve
    from router.config import load_router_config

    uvloop.run(serve(load_router_config(Path(config))))


def _become(stdin: Connection, stdout: Connection, log: str) -> None:
    os.dup2(stdin.fileno(), 0)
    os.dup2(stdout.fileno(), 1)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 2)
    os.close(file)
    stdin.close()
    stdout.close()
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
