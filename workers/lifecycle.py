"""How a rank process is told to end: by a signal, by a supervisor that has gone, by the end of its epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Lock, Thread, Timer
from typing import TYPE_CHECKING

from baleen.errors import BaleenError
from baleen.telemetry import Log
from workers.engine.inbox import Inbox
from workers.engine.messages import Drain, Ended
from workers.parallel.guard import EpochGuard

if TYPE_CHECKING:
    from workers.outlets import Outlets
    from workers.parallel.group import Group

ORPHAN_GRACE_S = 10.0
"""How long a rank without a supervisor may take to end in order."""

FLUSH_TIMEOUT_S = 2.0
"""How long an exit waits until the last events are written."""

_SIGNALS = {signal.SIGTERM, signal.SIGINT}


class Lifecycle:
    """Turns every wish or need to end into the one that fits: exit while starting, drain while serving.

    Its methods may be called from any thread. Python's own signal handlers are not used: they run in the main thread
    at any point, also where that holds the lock which the handler needs.
    """

    def __init__(
        self,
        rank: int,
        inbox: Inbox,
        log: Log,
        *,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._rank = rank
        self._inbox = inbox
        self._log = log
        self._exit_process = exit_process
        self._guard = EpochGuard(name=f"rank {rank}", exit_process=self.exit, write_line=self._log_end)
        self._lock = Lock()
        self._writer: Outlets | None = None
        self._group: Group | None = None
        self._serving = False
        self._ending = False

    def watch_signals(self) -> None:
        """Take SIGTERM and SIGINT from here on. Called in the main thread before any other thread exists."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        Thread(target=self._wait_for_signals, name="signals", daemon=True).start()

    def writes_to(self, writer: Outlets) -> None:
        """Where the last event goes."""
        self._writer = writer

    def joined(self, group: Group) -> None:
        """The other ranks can be told from now on."""
        self._group = group

    def serving(self) -> None:
        """The step loop is about to run: from now on a wish to end is one to drain."""
        with self._lock:
            self._serving = True

    def supervisor_gone(self) -> None:
        """Nobody reads or commands this rank any more: end soon, in order if possible."""
        timer = Timer(ORPHAN_GRACE_S, self._exit_orphan)
        timer.daemon = True
        timer.start()
        self.stop(Drain("the supervisor closed the rank's input", 0.0))

    def stop(self, drain: Drain) -> None:
        """Drain while serving; exit at once before that, since there is no request to finish."""
        with self._lock:
            serving = self._serving
            self._ending = self._ending or not serving
        if serving:
            self._log.info("drain", reason=drain.reason)
            self._inbox.put(drain)
            return
        self._log.info("stopped while starting", reason=drain.reason)
        if self._group is not None:
            self._group.end(f"rank {self._rank} was stopped while it started: {drain.reason}")
        self.end(drain.reason, 0)

    def epoch_ended(self, cause: str) -> None:
        """For the group's `on_end`: say so, and see to it that the process ends even if its main thread is stuck."""
        if self._ending:
            return
        if self._writer is not None:
            self._writer.emit(Ended(cause))
        self._guard.epoch_ended(cause)

    def leave_epoch(self, cause: str) -> None:
        """The main thread has learned that the epoch is over: end the process."""
        if self._writer is not None:
            self._writer.emit(Ended(cause))
        self._guard.leave(cause)

    def fail(self, error: Exception, phase: str) -> None:
        """This rank cannot go on: tell the group, and end the process with the error's exit code."""
        self._ending = True
        text = str(error) if isinstance(error, BaleenError) else f"{type(error).__name__}: {error}"
        self._log.error("rank failed", phase=phase, error=text)
        if self._group is not None:
            self._group.end(f"rank {self._rank} failed ({phase}): {text}")
        self.end(text, error.exit_code if isinstance(error, BaleenError) else BaleenError.exit_code)

    def end(self, cause: str, code: int) -> None:
        """Write the last event and end the process."""
        if self._writer is not None:
            self._writer.emit(Ended(cause))
        self.exit(code)

    def exit(self, code: int) -> None:
        """End the process without finalizers: those of a broken process group would wait for its collectives."""
        if self._writer is not None:
            self._writer.close(FLUSH_TIMEOUT_S)
        self._exit_process(code)

    def _wait_for_signals(self) -> None:
        number = signal.sigwait(_SIGNALS)
        self.stop(Drain(f"{signal.Signals(number).name} received"))
        while True:
            # asked again: whoever asks does not want to wait
            number = signal.sigwait(_SIGNALS)
            self.stop(Drain(f"{signal.Signals(number).name} received again", 0.0))

    def _exit_orphan(self) -> None:
        self._log.error("ended by force", reason=f"no end in order within {ORPHAN_GRACE_S:g} s without a supervisor")
        self.exit(BaleenError.exit_code)

    def _log_end(self, line: str) -> None:
        self._log.error(line.strip())
