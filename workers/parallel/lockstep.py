"""The meeting of all ranks at the start of each step, over one connection per pair of ranks.

Each rank sends one fixed-size word to every other and waits for theirs. A word that waits unread in a connection is
also what wakes an idle rank, so a wake-up cannot be lost. Over gloo the same meeting costs 30 times as much, and
nothing can interrupt it.
"""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from baleen.clock import Clock
from workers.parallel.doorbell import Doorbell

_WORD = struct.Struct("<qqqqq")

_NO_DECODE = -1
"""Rows of a step that is no decode step, on the wire."""


@dataclass(frozen=True, slots=True)
class DecodeSize:
    """Of a step of one token for each sequence: how many, and the most keys that one of them sees."""

    rows: int
    context: int


NO_ROWS = DecodeSize(0, 0)
"""What a rank without tokens brings: it takes part in whatever the others run."""


@dataclass(frozen=True, slots=True)
class Word:
    """What one rank brings to a step. decode: its size, if it is a decode step."""

    step: int
    num_tokens: int
    draining: bool
    decode: DecodeSize | None = None


def common_size(sizes: Sequence[DecodeSize | None]) -> DecodeSize | None:
    """What holds each rank's decode step; None if some rank brings another kind of step."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return DecodeSize(max(size.rows for size in known), max(size.context for size in known))


class EpochOver(Exception):
    """The `ended` bell rang: the control thread knows the cause."""


class LaneClosed(Exception):
    """The step connection to `rank` ended."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank}")
        self.rank = rank


class Overdue(Exception):
    """`ranks` did not come to the step in time."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(f"ranks {ranks}")
        self.ranks = ranks


class Lockstep:
    """The main thread's side of the step connections.

    `ended` is rung when the epoch is over, `work` when this rank has something to do; any thread may ring.
    """

    def __init__(self, lanes: Mapping[int, socket.socket], clock: Clock) -> None:
        self.ended = Doorbell()
        self.work = Doorbell()
        self._lanes = dict(lanes)
        self._unread = {rank: bytearray() for rank in lanes}
        self._closed: set[int] = set()
        self._clock = clock
        self._meeting = selectors.DefaultSelector()
        self._idling = selectors.DefaultSelector()
        for selector in (self._meeting, self._idling):
            selector.register(self.ended, selectors.EVENT_READ, None)
            for rank, lane in self._lanes.items():
                lane.setblocking(False)
                selector.register(lane, selectors.EVENT_READ, rank)
        self._idling.register(self.work, selectors.EVENT_READ, self.work)

    def exchange(self, word: Word, timeout_s: float) -> dict[int, Word]:
        """Say `word` to all, return what each other rank says. Raises EpochOver, LaneClosed, Overdue.

        Returning proves that each other rank has called this as often as this one.
        """
        size = word.decode or DecodeSize(_NO_DECODE, 0)
        frame = _WORD.pack(word.step, word.num_tokens, word.draining, size.rows, size.context)
        for rank, lane in self._lanes.items():
            self._send(rank, lane, frame)
        deadline = self._clock.now() + timeout_s
        while missing := [rank for rank, unread in self._unread.items() if len(unread) < _WORD.size]:
            self._refuse_closed(missing)
            if not self._read(self._meeting, deadline):
                raise Overdue(missing)
        return {rank: self._take_word(unread) for rank, unread in self._unread.items()}

    def wait(self, timeout_s: float) -> bool:
        """Block until the work bell was rung or a rank has said its next word: False when the time ran out instead.

        Raises EpochOver, LaneClosed.
        """
        deadline = self._clock.now() + timeout_s
        while True:
            if self.work.take() or any(len(unread) >= _WORD.size for unread in self._unread.values()):
                return True
            self._refuse_closed(self._lanes)
            if not self._read(self._idling, deadline):
                return False

    def close(self) -> None:
        """Let go of the connections and the bells."""
        self._meeting.close()
        self._idling.close()
        for lane in self._lanes.values():
            lane.close()
        self.ended.close()
        self.work.close()

    def _send(self, rank: int, lane: socket.socket, frame: bytes) -> None:
        try:
            # At most one word is on its way to a rank: it cannot be full, or a rank would be two steps behind.
            sent = lane.send(frame)
        except OSError as error:
            raise LaneClosed(rank) from error
        assert sent == len(frame), f"{sent} bytes of a word sent"

    def _read(self, selector: selectors.BaseSelector, deadline: float) -> bool:
        """Wait for something and take it in; False when the deadline passed first."""
        ready = selector.select(max(0.0, deadline - self._clock.now()))
        for key, _ in ready:
            if key.data is None:
                raise EpochOver
            if key.data is not self.work:
                self._fill(key.data)
        return bool(ready)

    def _fill(self, rank: int) -> None:
        try:
            data = self._lanes[rank].recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._unread[rank] += data
        if not data:
            self._closed.add(rank)
            for selector in (self._meeting, self._idling):
                selector.unregister(self._lanes[rank])

    def _refuse_closed(self, ranks: Iterable[int]) -> None:
        """A rank may close after the last word of an orderly leave; that word still counts, but none will follow."""
        for rank in self._closed.intersection(ranks):
            raise LaneClosed(rank)

    def _take_word(self, unread: bytearray) -> Word:
        step, num_tokens, draining, rows, context = _WORD.unpack_from(unread)
        del unread[: _WORD.size]
        return Word(step, num_tokens, bool(draining), None if rows == _NO_DECODE else DecodeSize(rows, context))
