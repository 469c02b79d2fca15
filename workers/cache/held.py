"""What a rank holds and how far Redis knows of it: a copy of the prefix tree's names, beside the tree's own thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from math import ceil

from baleen.blocks import BlockHash
from workers.cache.events import Cleared, Event, Removed, Snapshot, Stored


@dataclass(frozen=True, slots=True)
class Changes:
    """News for Redis. `stored` has a block after the one before it, if both are in it."""

    stored: tuple[BlockHash, ...]
    removed: tuple[BlockHash, ...]


@dataclass(slots=True, eq=False)
class HeldBlocks:
    """Blocks held, each after its parent, and those of them, or of the removed, that Redis has yet to be told."""

    held: dict[BlockHash, None] = field(default_factory=dict)
    _untold: dict[BlockHash, bool] = field(default_factory=dict)
    _to_refresh: list[BlockHash] = field(default_factory=list)

    @property
    def num_untold(self) -> int:
        """Blocks whose state Redis has yet to be told."""
        return len(self._untold)

    def apply(self, news: Iterable[Snapshot | Event]) -> None:
        """Take in what happened, in order."""
        for item in news:
            match item:
                case Stored():
                    self._store(item.block_hash)
                case Removed():
                    self._remove(item.block_hash)
                case Cleared():
                    self._replace(())
                case Snapshot():
                    self._replace(stored.block_hash for stored in item.stored)

    def take(self, most: int) -> Changes:
        """Up to `most` changes, the oldest first; `put_back` what could not be told."""
        told = list(islice(self._untold.items(), most))
        for block_hash, _ in told:
            del self._untold[block_hash]
        stored = tuple(block_hash for block_hash, is_held in told if is_held)
        return Changes(stored, tuple(block_hash for block_hash, is_held in told if not is_held))

    def put_back(self, changes: Changes) -> None:
        """Changes of the last `take` that Redis was perhaps not told."""
        back = dict.fromkeys(changes.removed, False) | dict.fromkeys(changes.stored, True)
        self._untold = back | self._untold

    def forget_untold(self) -> None:
        """Nobody is to be told any more, until `tell_all`: so that nothing piles up meanwhile."""
        self._untold.clear()

    def tell_all(self) -> None:
        """Redis knows nothing: tell it everything."""
        self._untold = dict.fromkeys(self.held, True)
        self._to_refresh.clear()

    def refresh(self, share: float) -> None:
        """Tell this share of everything again, so that it does not expire; 1/share calls come round to all of it."""
        if not self._to_refresh:
            self._to_refresh = list(reversed(self.held))
        for _ in range(min(len(self._to_refresh), ceil(len(self.held) * share))):
            block_hash = self._to_refresh.pop()
            if block_hash in self.held:
                self._untold.setdefault(block_hash, True)

    def _store(self, block_hash: BlockHash) -> None:
        self.held[block_hash] = None
        # what is told again goes to the end, behind its parent
        self._untold.pop(block_hash, None)
        self._untold[block_hash] = True

    def _remove(self, block_hash: BlockHash) -> None:
        self.held.pop(block_hash, None)
        self._untold.pop(block_hash, None)
        self._untold[block_hash] = False

    def _replace(self, hashes: Iterable[BlockHash]) -> None:
        new = dict.fromkeys(hashes)
        for block_hash in [block_hash for block_hash in self.held if block_hash not in new]:
            self._remove(block_hash)
        for block_hash in new:
            if block_hash not in self.held:
                self._store(block_hash)
