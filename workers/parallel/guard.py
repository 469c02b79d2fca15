"""The last resort of invariant 6: a process whose epoch is over ends, even if its main thread is stuck."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from baleen.errors import EpochEnded


def _start_timer(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _write_stderr(line: str) -> None:
    # Straight to the descriptor: the main thread may be stuck while it holds the lock of sys.stderr.
    os.write(2, line.encode())


class EpochGuard:
    """Ends the process with one line on stderr and EpochEnded's exit code.

    The main thread calls `leave` when it meets EpochEnded. If it does not within `grace_s` of `epoch_ended`, because
    it is inside a collective that nothing can interrupt, a timer does. Both use os._exit: finalizers of a process
    group wait for collectives that will never complete.
    """

    def __init__(
        self,
        *,
        name: str,
        grace_s: float = 0.5,
        exit_process: Callable[[int], object] = os._exit,
        write_line: Callable[[str], object] = _write_stderr,
        start_timer: Callable[[float, Callable[[], None]], object] = _start_timer,
    ) -> None:
        self._name = name
        self._grace_s = grace_s
        self._exit_process = exit_process
        self._write_line = write_line
        self._start_timer = start_timer
        self._lock = threading.Lock()
        self._armed = False
        self._left = False

    def epoch_ended(self, cause: str) -> None:
        """The epoch is over: give the main thread its grace. For `open_group`'s on_end; never blocks."""
        with self._lock:
            if self._armed:
                return
            self._armed = True
        self._start_timer(self._grace_s, lambda: self.leave(cause, "the main thread did not come out in time"))

    def leave(self, cause: str, detail: str = "") -> None:
        """Write the line and end the process; the first call counts."""
        with self._lock:
            if self._left:
                return
            self._left = True
        self._write_line(f"{self._name}: epoch ended: {cause}{f' ({detail})' if detail else ''}\n")
        self._exit_process(EpochEnded.exit_code)
