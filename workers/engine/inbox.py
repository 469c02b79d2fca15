"""The commands that wait for the step loop, put in by any thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Protocol

from workers.engine.messages import Command


class Intake(Protocol):
    """Takes commands for the step loop."""

    def put(self, command: Command) -> bool:
        """Add a command; False if the loop has ended and will never see it."""
        ...


class Inbox:
    """A queue with an end: after `close`, whoever puts learns that nobody will read."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._commands: list[Command] = []
        self._closed = False
        self._notify: Callable[[], None] | None = None

    def connect(self, notify: Callable[[], None]) -> None:
        """Call `notify` after each command from now on, and at once if there are any."""
        with self._lock:
            self._notify = notify
            waiting = bool(self._commands)
        if waiting:
            notify()

    def put(self, command: Command) -> bool:
        """Add a command; False if the loop has ended and will never see it."""
        with self._lock:
            if self._closed:
                return False
            self._commands.append(command)
            notify = self._notify
        if notify is not None:
            notify()
        return True

    def take(self) -> Sequence[Command]:
        """All commands since the last call, oldest first."""
        # reading a list's length needs no lock, and most steps find nothing
        if not self._commands:
            return ()
        with self._lock:
            commands, self._commands = self._commands, []
        return commands

    def close(self) -> Sequence[Command]:
        """Take what is left; from now on `put` gives False."""
        with self._lock:
            self._closed = True
            commands, self._commands = self._commands, []
        return commands
