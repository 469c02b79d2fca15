"""The books of a rank's blocks: the state of each one, who holds it, and the audit.

    FREE    nobody's, content worthless       --take-->     HELD
    HELD    by one or more requests           --release-->  CACHED if the prefix tree knows it, else FREE
    CACHED  in the prefix tree, held by none  --share-->    HELD,  --reclaim--> FREE

A block is in exactly one state, and the three counts add up to the pool. Nothing else changes a block's state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from baleen.errors import BaleenError
from baleen.ids import RequestId


class Holder(NamedTuple):
    """Who holds blocks: one completion of one submission."""

    request_id: RequestId
    completion: int

    def __str__(self) -> str:
        return f"request {self.request_id}[{self.completion}]"


class AccountingError(BaleenError):
    """The books of blocks or requests contradict each other; serving on could mix up contexts."""


class BlockState(Enum):
    """What a block is used for; exactly one applies."""

    FREE = "free"
    HELD = "held"
    CACHED = "cached"


class Ledger:
    """States and reference counts of blocks 0 to num_blocks - 1, and the blocks of each holder in order."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self.num_held = 0
        self.num_cached = 0
        self._states = [BlockState.FREE] * num_blocks
        self._references = [0] * num_blocks
        # a stack: the block freed last is the one most likely still in the processor's caches
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holdings: dict[Holder, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that are nobody's."""
        return len(self._free)

    def state(self, block: int) -> BlockState:
        """State of one block."""
        return self._states[block]

    def references(self, block: int) -> int:
        """How many holders one block has."""
        return self._references[block]

    def held_by(self, holder: Holder) -> tuple[int, ...]:
        """Blocks of one holder, in the order in which it got them."""
        return tuple(self._holdings.get(holder, ()))

    def take(self, holder: Holder) -> int:
        """Give `holder` a free block; the caller has made sure that there is one."""
        block = self._free.pop()
        self._states[block] = BlockState.HELD
        self._references[block] = 1
        self.num_held += 1
        self._holdings.setdefault(holder, []).append(block)
        return block

    def share(self, holder: Holder, block: int) -> bool:
        """Give `holder` a block that others hold or the prefix tree keeps; True if it was cached."""
        was_cached = self._states[block] is BlockState.CACHED
        assert was_cached or self._states[block] is BlockState.HELD, f"block {block} is free and cannot be shared"
        if was_cached:
            self._states[block] = BlockState.HELD
            self.num_cached -= 1
            self.num_held += 1
        self._references[block] += 1
        self._holdings.setdefault(holder, []).append(block)
        return was_cached

    def release(self, holder: Holder, *, keep: Collection[int]) -> list[int]:
        """Take every block from `holder`; one that nobody else holds turns CACHED if it is in `keep`, else FREE.

        Returns the blocks that turned CACHED, the holder's last one first. A holder of nothing is no error.
        """
        cached: list[int] = []
        for block in reversed(self._holdings.pop(holder, ())):
            self._references[block] -= 1
            if self._references[block]:
                continue
            self.num_held -= 1
            if block in keep:
                self._states[block] = BlockState.CACHED
                self.num_cached += 1
                cached.append(block)
            else:
                self._states[block] = BlockState.FREE
                self._free.append(block)
        return cached

    def reclaim(self, block: int) -> None:
        """Free a cached block, which the prefix tree has just given up."""
        assert self._states[block] is BlockState.CACHED, f"block {block} is {self._states[block].value}, not cached"
        self._states[block] = BlockState.FREE
        self.num_cached -= 1
        self._free.append(block)

    def check_counts(self) -> None:
        """Constant-time audit. Raises AccountingError if the counts do not add up to the pool."""
        total = self.num_free + self.num_held + self.num_cached
        if total != self.num_blocks:
            raise AccountingError(
                f"{self.num_free} free + {self.num_held} held + {self.num_cached} cached blocks are {total}, "
                f"the pool has {self.num_blocks}"
            )

    def check(self, live: Mapping[Holder, Sequence[int]], registered: Collection[int]) -> None:
        """Full audit against `live`, the blocks that each living holder believes to have, and the prefix tree's.

        Raises AccountingError that names the holder that leaks, or the block that is in two states or in none.
        """
        self.check_counts()
        for holder, blocks in self._holdings.items():
            if holder not in live:
                raise AccountingError(f"{holder} leaks: it has ended and still holds blocks {blocks}")
        for holder, believed in live.items():
            held = self._holdings.get(holder, [])
            if held != list(believed):
                raise AccountingError(f"{holder} has blocks {list(believed)}, the ledger says {held}")
        references = [0] * self.num_blocks
        states = [BlockState.CACHED] * self.num_blocks
        for blocks in self._holdings.values():
            for block in blocks:
                references[block] += 1
                states[block] = BlockState.HELD
        for block in self._free:
            if references[block]:
                raise AccountingError(f"block {block} is free and held by {self._holders_of(block)}")
            if states[block] is BlockState.FREE:
                raise AccountingError(f"block {block} is free twice")
            states[block] = BlockState.FREE
        # whole lists compare fast; only a difference is looked for block by block
        if states != self._states or references != self._references:
            self._raise_first_difference(states, references)
        for block, state in enumerate(states):
            if state is not BlockState.HELD and (state is BlockState.CACHED) is not (block in registered):
                raise AccountingError(f"block {block} is {state.value}, in the prefix tree: {block in registered}")

    def _raise_first_difference(self, states: list[BlockState], references: list[int]) -> None:
        for block, (state, count) in enumerate(zip(states, references, strict=True)):
            if self._states[block] is not state or self._references[block] != count:
                raise AccountingError(
                    f"block {block} is {self._states[block].value} with {self._references[block]} references, expected "
                    f"{state.value} with {count}, held by {self._holders_of(block)}"
                )

    def _holders_of(self, block: int) -> str:
        return ", ".join(str(holder) for holder, blocks in self._holdings.items() if block in blocks) or "none"
