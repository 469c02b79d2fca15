"""A wake-up that a selector can wait for: rung by any thread, answered by one."""

from __future__ import annotations

import socket


class Doorbell:
    """Stays rung until `take`, so a ring before the wait is never lost."""

    def __init__(self) -> None:
        # A socket pair and not a pipe: a late ring after close() must fail here, never reach a reused descriptor.
        self._listening, self._ringing = socket.socketpair()
        self._listening.setblocking(False)
        self._ringing.setblocking(False)

    def fileno(self) -> int:
        """For a selector: readable while rung."""
        return self._listening.fileno()

    def ring(self) -> None:
        """Safe from any thread, cheap, never blocks; after `close` it does nothing."""
        try:
            self._ringing.send(b"\0")
        except BlockingIOError:
            pass  # full of rings that nobody has answered yet
        except OSError:
            if self._ringing.fileno() >= 0:
                raise

    def take(self) -> bool:
        """Answer: whether it was rung since the last `take`."""
        rung = False
        try:
            while self._listening.recv(4096):
                rung = True
        except BlockingIOError:
            pass
        return rung

    def close(self) -> None:
        """Let go of both ends."""
        self._ringing.close()
        self._listening.close()
