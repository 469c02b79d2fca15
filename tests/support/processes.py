"""Real processes for tests: started, signalled, waited for with a bound, and gone when the test ends.

A child's standard output is a pipe of events, one JSON value a line; its standard error goes to a file.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

REPO = Path(__file__).resolve().parents[2]
FORK_PRELOAD = [
    "pytest",
    "torch",
    "torch.distributed",
    "workers.parallel.join",
    "workers.startup",
    "workers.server_thread",
    "workers.cache.announce",
    "workers.main",
    "router.main",
    "tests.support.group_programs",
    "tests.support.forked",
]
"""What the server imports that tests fork from; one for all of them, as there is one server."""


class _Exits(Protocol):
    def exit_code(self) -> int: ...


class _Program:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def exit_code(self) -> int:
        return self.process.wait(10)


class _Fork:
    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    def exit_code(self) -> int:
        self.process.join(10)
        code = self.process.exitcode
        assert code is not None
        self.process.close()
        return code


class Child:
    """One process. `code` is its exit code once `wait` has seen it (minus the signal's number if one killed it)."""

    def __init__(self, name: str, pid: int, exits: _Exits, events: int, errors: Path) -> None:
        self.name = name
        self.pid = pid
        self.code: int | None = None
        self.exited_at: float | None = None
        self._exits = exits
        self._events = events
        self._unread = b""
        self._errors = errors
        self._pidfd = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        """Signal this process, by its own descriptor, so that a reused pid is never hit."""
        signal.pidfd_send_signal(self._pidfd, number)

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return self._errors.read_text(encoding="utf-8")

    def event(self, timeout_s: float = 60.0) -> Any:
        """The next event. Fails with its standard error if none comes in time or the process ends without one."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._events], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._events, 65536) if ready else b""
            if not chunk:
                what = "ended without" if ready else f"gave within {timeout_s} s no"
                raise AssertionError(f"{self.name} {what} event:\n{self.errors()[-4000:]}")
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Its exit code. Fails with its standard error if it does not end in time."""
        wait_all([self], timeout_s)
        assert self.code is not None
        return self.code

    def _reap(self, now: float) -> None:
        self.code, self.exited_at = self._exits.exit_code(), now
        os.close(self._pidfd)
        os.close(self._events)


def wait_all(children: Sequence[Child], timeout_s: float = 60.0) -> None:
    """Wait until all have ended, noting `exited_at` (time.monotonic) of each as it happens."""
    deadline = time.monotonic() + timeout_s
    while running := {child._pidfd: child for child in children if child.code is None}:
        ended, _, _ = select.select(list(running), [], [], max(0.0, deadline - time.monotonic()))
        now = time.monotonic()
        for pidfd in ended:
            running[pidfd]._reap(now)
        if not ended:
            text = "\n".join(f"--- {child.name}:\n{child.errors()[-3000:]}" for child in running.values())
            raise AssertionError(f"{len(running)} processes did not end within {timeout_s} s\n{text}")


class Nursery:
    """Starts children and sees them out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def launch(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Child:
        """Start a program."""
        events, child_end = os.pipe()
        errors = self._new_file(name)
        with errors.open("wb") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=child_end,
                stderr=log,
                cwd=REPO,
                env={**os.environ, **(env or {})},
            )
        os.close(child_end)
        return self._adopt(Child(name, process.pid, _Program(process), events, errors))

    def fork(self, name: str, target: Callable[..., None], *args: Any) -> Child:
        """Start `target(*args)` in a fork of a process that has imported torch already: 50 ms instead of 3 s."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(FORK_PRELOAD)
        receiver, sender = context.Pipe(duplex=False)
        errors = self._new_file(name)
        process = context.Process(target=_run_forked, args=(sender, str(errors), target, args), name=name, daemon=True)
        process.start()
        sender.close()
        events = os.dup(receiver.fileno())
        receiver.close()
        assert process.pid is not None
        return self._adopt(Child(name, process.pid, _Fork(process), events, errors))

    def end_all(self) -> None:
        """Kill and reap whatever still lives, also what was stopped."""
        living = [child for child in self._children if child.code is None]
        for child in living:
            with contextlib.suppress(ProcessLookupError):
                child.send(signal.SIGKILL)
        wait_all(living, 20.0)

    def _new_file(self, name: str) -> Path:
        path = self._directory / f"{len(self._children)}-{name.replace(' ', '-')}.err"
        path.touch()
        return path

    def _adopt(self, child: Child) -> Child:
        self._children.append(child)
        return child


@contextlib.contextmanager
def nursery(directory: Path) -> Iterator[Nursery]:
    """A Nursery whose children are gone when the block is left, whatever happened in it."""
    children = Nursery(directory)
    try:
        yield children
    finally:
        children.end_all()


def emit(event: object) -> None:
    """In a child: send one event to whoever started it."""
    os.write(1, json.dumps(event).encode() + b"\n")


def _run_forked(sender: Connection, errors: str, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.dup2(sender.fileno(), 1)
    log = os.open(errors, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    os.close(log)
    sender.close()
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    target(*args)
