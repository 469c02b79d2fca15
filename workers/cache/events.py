"""The log of what entered and left the prefix tree, numbered so that a reader notices what it missed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from baleen.blocks import BlockHash


@dataclass(frozen=True, slots=True)
class Stored:
    """A block can now be shared. `parent_hash` is the block before it, or the root of its salt."""

    sequence: int
    block_hash: BlockHash
    parent_hash: BlockHash
    block_id: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A block can no longer be shared."""

    sequence: int
    block_hash: BlockHash


@dataclass(frozen=True, slots=True)
class Cleared:
    """Everything stored before can no longer be shared."""

    sequence: int


Event = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All blocks that can be shared, each after its parent, as of event `sequence`; later events apply on top."""

    sequence: int
    stored: tuple[Stored, ...]


class EventLog:
    """The last `capacity` events with consecutive sequence numbers from 1. Owned by the thread of the step loop."""

    def __init__(self, capacity: int) -> None:
        assert capacity >= 1
        self._events: deque[Event] = deque(maxlen=capacity)
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """Number of the last event, 0 before the first."""
        return self._sequence

    def stored(self, block_hash: BlockHash, parent_hash: BlockHash, block_id: int) -> Stored:
        """Append and return a Stored event."""
        self._sequence += 1
        event = Stored(self._sequence, block_hash, parent_hash, block_id)
        self._events.append(event)
        return event

    def removed(self, block_hash: BlockHash) -> None:
        """Append a Removed event."""
        self._sequence += 1
        self._events.append(Removed(self._sequence, block_hash))

    def cleared(self) -> None:
        """Append a Cleared event."""
        self._sequence += 1
        self._events.append(Cleared(self._sequence))

    def after(self, sequence: int) -> list[Event] | None:
        """Events numbered above `sequence`; None if some of them are gone, and the reader must take a snapshot."""
        missed = self._sequence - sequence
        assert missed >= 0, f"event {sequence} has not happened yet, the last one is {self._sequence}"
        if missed > len(self._events):
            return None
        return list(islice(self._events, len(self._events) - missed, None))
