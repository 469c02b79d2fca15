"""A whole group of ranks as child processes of this one, on this machine, without Ray."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from baleen.clock import Clock, SystemClock
from baleen.config import ParallelConfig, RankConfig
from baleen.config_file import to_dict
from baleen.errors import BaleenError, CheckpointError, ConfigError, EpochEnded
from baleen.ids import RequestId, new_epoch
from cluster.rank_child import Exited, Garbled, RankChild
from workers.engine.messages import Abort, Ended, Event, LocalCommand, Ready, Submit

START_TIMEOUT_S = 3600.0
"""Longest wait for all ranks to load."""

SETTLE_S = 3.0
"""After the first rank has ended: longest wait for the others, to learn which one was the cause."""

CLOSE_TIMEOUT_S = 5.0
"""How long ranks may take to leave in order before they are killed."""

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ERRORS: dict[int, type[BaleenError]] = {2: ConfigError, 3: CheckpointError}


class SpawnedGroup:
    """Ranks 0 to world_size - 1, from start to end; a context manager that leaves no process behind.

    One thread uses it. Requests go to the ranks in turn.
    """

    def __init__(self, config: RankConfig, world_size: int, *, clock: Clock | None = None) -> None:
        """config: of every rank, but for its place in the group."""
        self._clock = clock or SystemClock()
        self._num_submitted = 0
        self._ranks: dict[RequestId, int] = {}
        self._news: SimpleQueue[tuple[int, Event | Exited | Garbled]] = SimpleQueue()
        self._causes: dict[int, str] = {}
        self._exits: dict[int, int] = {}
        self._children: list[RankChild] = []
        self._directory = tempfile.TemporaryDirectory(prefix="baleen-")
        directory = Path(self._directory.name)
        parallel = replace(
            config.parallel, world_size=world_size, epoch=new_epoch(), rendezvous=f"file://{directory}/rendezvous"
        )
        self._configs = [directory / f"rank-{rank}.json" for rank in range(world_size)]
        for rank, path in enumerate(self._configs):
            path.write_text(json.dumps(to_dict(replace(config, parallel=_at(parallel, rank)))), encoding="utf-8")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self._configs)

    @property
    def pids(self) -> list[int]:
        """Process ids by rank."""
        return [child.pid for child in self._children]

    def __enter__(self) -> SpawnedGroup:
        try:
            with _signals_deferred():
                for rank, path in enumerate(self._configs):
                    self._children.append(RankChild(rank, path, self._take, clock=self._clock))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> list[Ready]:
        """Wait until every rank takes requests. Raises what `next_event` raises, and BaleenError after `timeout_s`."""
        deadline = self._clock.now() + timeout_s
        ready: dict[int, Ready] = {}
        while len(ready) < self.world_size:
            found = self.next_event(deadline - self._clock.now())
            if found is None:
                missing = [child for child in self._children if child.rank not in ready]
                raise BaleenError(
                    f"rank {', '.join(str(child.rank) for child in missing)} of {self.world_size} not ready after "
                    f"{timeout_s:g} s; last words of rank {missing[0].rank}: {missing[0].last_line or 'none'}"
                )
            rank, event = found
            if isinstance(event, Ready):
                ready[rank] = event
        return [ready[rank] for rank in range(self.world_size)]

    def submit(self, command: Submit) -> int:
        """Send a request to the next rank in turn; returns the rank."""
        rank = self._num_submitted % self.world_size
        self._num_submitted += 1
        self._ranks[command.request_id] = rank
        self._children[rank].send(command)
        return rank

    def abort(self, request_id: RequestId, index: int | None = None) -> None:
        """End one completion of a request, or all."""
        self._children[self._ranks[request_id]].send(Abort(request_id, index))

    def send(self, rank: int, command: LocalCommand) -> None:
        """Send any command to one rank."""
        self._children[rank].send(command)

    def next_event(self, timeout_s: float) -> tuple[int, Event] | None:
        """The next event and its rank; None after `timeout_s`.

        Raises the error of the rank that could not start or go on, EpochEnded if one was lost, or BaleenError if the
        group left although it was not asked to.
        """
        try:
            rank, news = self._news.get(timeout=max(0.0, timeout_s))
        except Empty:
            return None
        if isinstance(news, (Ended, Exited, Garbled)):
            raise self._explain(rank, news)
        return rank, news

    def close(self) -> None:
        """End all ranks: in order if they can, by force if they do not within `CLOSE_TIMEOUT_S`."""
        try:
            for child in self._children:
                child.ask_to_end()
            deadline = time.monotonic() + CLOSE_TIMEOUT_S
            for child in self._children:
                child.wait(max(0.0, deadline - time.monotonic()))
        finally:
            # also after a second Ctrl-C: whoever still lives is killed, and a killed process needs no patience
            with _signals_deferred():
                for child in self._children:
                    child.kill()
                    child.wait(CLOSE_TIMEOUT_S)
                self._directory.cleanup()

    def _take(self, rank: int, news: Event | Exited | Garbled) -> None:
        self._news.put((rank, news))

    def _explain(self, rank: int, news: Ended | Exited | Garbled) -> BaleenError:
        """The error behind the first sign of an end; waits a little for the others' accounts of it."""
        if isinstance(news, Garbled):
            return BaleenError(f"rank {rank}: {news.message}")
        deadline = self._clock.now() + SETTLE_S
        found: tuple[int, Event | Exited | Garbled] | None = (rank, news)
        while found is not None:
            match found:
                case rank, Ended(cause):
                    self._causes.setdefault(rank, cause)
                case rank, Exited(code):
                    self._exits[rank] = code
            if len(self._exits) == self.world_size:
                break
            try:
                found = self._news.get(timeout=max(0.0, deadline - self._clock.now()))
            except Empty:
                found = None
        return end_of_group(self._exits, self._causes, [child.last_line for child in self._children])


def end_of_group(exits: dict[int, int], causes: dict[int, str], last_lines: Sequence[str]) -> BaleenError:
    """The error that tells best why a group ended.

    exits: exit codes of the ranks that are gone, negative for a signal. causes: what ranks said when they ended. A rank
    that was killed, or failed on its own, counts before those that only noticed it.
    """
    killed = {rank: signal.Signals(-code).name for rank, code in sorted(exits.items()) if code < 0}
    if killed:
        return EpochEnded(", ".join(f"rank {rank} was killed by {name}" for rank, name in killed.items()))
    for rank, code in sorted(exits.items()):
        if code not in (os.EX_OK, EpochEnded.exit_code):
            cause = causes.get(rank) or last_lines[rank] or f"ended with code {code}"
            prefix = f"rank {rank}: " if len(last_lines) > 1 else ""
            return _ERRORS.get(code, BaleenError)(prefix + cause)
    noticed = [causes[rank] for rank, code in sorted(exits.items()) if code == EpochEnded.exit_code and rank in causes]
    if noticed:
        return EpochEnded(noticed[0])
    cause = next(iter(causes.values()), "no rank said why")
    return BaleenError(f"the group left before its work was done: {cause}")


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold back what would interrupt the block: a process that is started but not yet noted would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: held.append(number)) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for interrupt in held:
        signal.raise_signal(interrupt)


def _at(parallel: ParallelConfig, rank: int) -> ParallelConfig:
    return replace(parallel, rank=rank)
