"""Blocks to announce, without a cache behind them."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.blocks import BlockHash
from tests.support.redis_server import ROOT
from workers.cache.events import EventLog, Snapshot, Stored


class Shelf:
    """What `workers.cache.blocks.BlockCache` shows of itself to an announcer."""

    def __init__(self, *, capacity: int = 65_536) -> None:
        self.events = EventLog(capacity)
        self.num_snapshots = 0
        self._stored: dict[BlockHash, Stored] = {}

    def store(self, hashes: Sequence[BlockHash]) -> None:
        for parent, block_hash in zip([ROOT, *hashes], hashes, strict=False):
            if block_hash not in self._stored:
                self._stored[block_hash] = self.events.stored(block_hash, parent, len(self._stored))

    def remove(self, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            del self._stored[block_hash]
            self.events.removed(block_hash)

    def clear(self) -> None:
        self._stored.clear()
        self.events.cleared()

    def snapshot(self) -> Snapshot:
        self.num_snapshots += 1
        return Snapshot(self.events.sequence, tuple(self._stored.values()))
