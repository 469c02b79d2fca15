"""A rank's own stdin and stdout: a thread that reads commands, a thread that writes events, one JSON line each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread

from baleen.clock import Clock
from baleen.errors import DrainingError, InvalidRequest
from workers.engine.inbox import Intake
from workers.engine.messages import Ended, Event, HealthQuery, HealthReport, Refused, Submit
from workers.json_lines import decode_command, encode_event

_READ_BYTES = 1 << 16


def claim_stdout() -> int:
    """Keep stdout for events: returns a file descriptor for them, and sends what any library prints to stderr."""
    events = os.dup(1)
    os.dup2(2, 1)
    return events


class EventWriter:
    """Writes events in the order of `emit`, in a thread of its own, so that a slow reader never delays a step.

    What waits to be written is bounded by the requests that the reader itself has submitted.
    """

    def __init__(self, descriptor: int, *, on_broken: Callable[[], None]) -> None:
        """`on_broken` is called once, in the writer's thread, when nothing can be written any more."""
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = Thread(target=self._write, name="event-writer", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Queue one event. Any thread; never blocks. Nothing is written after an `Ended`, the first of which counts."""
        self._events.put(event)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, unless that takes longer than `timeout_s`."""
        self._events.put(None)
        self._thread.join(timeout_s)

    def _write(self) -> None:
        event: Event | None = None
        try:
            while not isinstance(event, Ended) and (event := self._events.get()) is not None:
                _write_all(self._descriptor, encode_event(event).encode() + b"\n")
        except BrokenPipeError:
            self._on_broken()
        except BaseException:
            self._on_broken()
            raise


class CommandReader:
    """Puts commands into the inbox; answers health and malformed lines itself, since the step loop may be stuck."""

    def __init__(
        self,
        descriptor: int,
        inbox: Intake,
        *,
        emit: Callable[[Event], None],
        health: Callable[[], HealthReport],
        on_end: Callable[[], None],
        clock: Clock,
        takes_requests: bool = True,
    ) -> None:
        """`on_end` is called in the reader's thread when whoever writes has gone, or nothing can be read any more.

        takes_requests: False for a rank that has another way in, and answers there.
        """
        self._descriptor = descriptor
        self._inbox = inbox
        self._emit = emit
        self._health = health
        self._on_end = on_end
        self._clock = clock
        self._takes_requests = takes_requests

    def start(self) -> None:
        """Read until the end, in a thread that does not keep the process alive."""
        Thread(target=self._read, name="command-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            for line in _lines(self._descriptor):
                if line.strip():
                    self._obey(line)
        finally:
            self._on_end()

    def _obey(self, line: bytes) -> None:
        command = decode_command(line, now=self._clock.now())
        if isinstance(command, Refused):
            self._emit(command)
        elif isinstance(command, HealthQuery):
            self._emit(self._health())
        elif isinstance(command, Submit) and not self._takes_requests:
            message = "this rank takes requests over gRPC"
            self._emit(Refused(command.request_id, InvalidRequest.__name__, "type", message))
        elif not self._inbox.put(command) and isinstance(command, Submit):
            self._emit(Refused(command.request_id, DrainingError.__name__, None, "the rank has ended"))


def _lines(descriptor: int) -> Iterator[bytes]:
    """Lines without buffering beyond what has arrived; a last one without newline counts.

    Plain reads: a thread that sits in a buffered reader holds a lock that the interpreter needs in order to exit.
    """
    pieces: list[bytes] = []
    while chunk := os.read(descriptor, _READ_BYTES):
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        for piece in others:
            yield b"".join(pieces)
            pieces = [piece]
    yield b"".join(pieces)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
