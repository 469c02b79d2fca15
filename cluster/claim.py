"""Which address a router has: one of a few, held by one process at a time, and free again with its end."""

from __future__ import annotations

import errno
import hashlib
import socket
import time
from collections.abc import Sequence
from types import TracebackType

from baleen.errors import ConfigError
from baleen.ports import is_taken

_POLL_S = 0.05


class Claim:
    """The first address of several that no other process holds; a context manager that lets go of it.

    Kept as an abstract Unix socket, which is known exactly where ports are: in one network namespace.
    """

    def __init__(self, addresses: Sequence[str], *, timeout_s: float, generation: int = 1) -> None:
        """Wait for one. Raises ConfigError if others hold all of them for `timeout_s` seconds.

        generation: those of one may hold what those of another do, whose place they take.
        """
        self._suffix = f"@{generation}" if generation > 1 else ""
        deadline = time.monotonic() + timeout_s
        self._holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while (number := self._first_free(addresses)) is None:
            if time.monotonic() > deadline:
                self._holder.close()
                raise ConfigError(f"other clusters of this machine have {', '.join(addresses)}")
            time.sleep(_POLL_S)
        self.number = number

    def release(self) -> None:
        """Let others have it."""
        self._holder.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _first_free(self, addresses: Sequence[str]) -> int | None:
        for number, address in enumerate(addresses):
            try:
                self._holder.bind("\0baleen-" + hashlib.sha256(f"{address}{self._suffix}".encode()).hexdigest())
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return number
        return None


def await_free(addresses: Sequence[str], *, timeout_s: float) -> None:
    """Wait until `host:port` can be listened on, each of them, or the time is over: who listens says what is wrong."""
    deadline = time.monotonic() + timeout_s
    for address in addresses:
        while is_taken(address) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
