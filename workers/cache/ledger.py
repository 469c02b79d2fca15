"""The books of a rank's blocks: the state of each one, who holds it, and the audit.

    FREE      nobody's, content worthless         --take-->     HELD,  --expect--> ARRIVING
    HELD      by requests or reservations         --release-->  LENT, CACHED if the prefix tree knows it, else FREE
    LENT      held only by transfers to a peer    --release-->  CACHED or FREE,  --share--> HELD
    CACHED    in the prefix tree, held by none    --share-->    HELD or LENT,  --reclaim--> FREE
    ARRIVING  written by a transfer from a peer   --land-->     HELD,  --give_up--> FREE

A block is in exactly one state, and the five counts add up to the pool. Nothing else changes a block's state. What
arrives is readable for nobody, and no request is ever given it, until it has landed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from baleen.errors import BaleenError
from baleen.ids import RequestId


class HolderKind(Enum):
    """What holds blocks."""

    REQUEST = "request"
    RESERVATION = "reservation"
    TRANSFER = "transfer of"


class Holder(NamedTuple):
    """Who holds blocks: one completion of one submission, a reservation, or what a request sends to a peer."""

    request_id: RequestId
    completion: int
    kind: HolderKind = HolderKind.REQUEST

    def __str__(self) -> str:
        return f"{self.kind.value} {self.request_id}[{self.completion}]"


class AccountingError(BaleenError):
    """The books of blocks or requests contradict each other; serving on could mix up contexts."""


class BlockState(Enum):
    """What a block is used for; exactly one applies."""

    FREE = "free"
    HELD = "held"
    LENT = "lent"
    CACHED = "cached"
    ARRIVING = "arriving"


class Ledger:
    """States and reference counts of blocks 0 to num_blocks - 1, and the blocks of each holder in order."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self.num_held = 0
        self.num_lent = 0
        self.num_cached = 0
        self.num_arriving = 0
        self._states = [BlockState.FREE] * num_blocks
        self._references = [0] * num_blocks
        # how many of the references are transfers to a peer
        self._loans = [0] * num_blocks
        # a stack: the block freed last is the one most likely still in the processor's caches
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holdings: dict[Holder, list[int]] = {}
        self._arriving: dict[Holder, list[int]] = {}

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

    def arriving_for(self, holder: Holder) -> tuple[int, ...]:
        """Blocks that `holder` still expects, the next one first."""
        return tuple(self._arriving.get(holder, ()))

    def take(self, holder: Holder) -> int:
        """Give `holder`, which is no transfer, a free block; the caller has made sure that there is one."""
        block = self._free.pop()
        self._references[block] = 1
        self._holdings.setdefault(holder, []).append(block)
        self._enter(block, BlockState.HELD)
        return block

    def share(self, holder: Holder, block: int) -> bool:
        """Give `holder` a block that others hold or the prefix tree keeps; True if it was cached."""
        state = self._states[block]
        assert state not in (BlockState.FREE, BlockState.ARRIVING), f"block {block} is {state.value}, not shareable"
        self._references[block] += 1
        self._holdings.setdefault(holder, []).append(block)
        if holder.kind is HolderKind.TRANSFER:
            self._loans[block] += 1
            if state is BlockState.CACHED:
                self._leave(block, BlockState.LENT)
        elif state is not BlockState.HELD:
            self._leave(block, BlockState.HELD)
        return state is BlockState.CACHED

    def release(self, holder: Holder, *, keep: Collection[int]) -> list[int]:
        """Take every block from `holder`; one that nobody else holds turns CACHED if it is in `keep`, else FREE.

        Returns the blocks that turned CACHED, the holder's last one first. A holder of nothing is no error.
        """
        cached: list[int] = []
        for block in reversed(self._holdings.pop(holder, ())):
            if self._unhold(holder, block, keep):
                cached.append(block)
        return cached

    def give_back(self, holder: Holder, block: int, *, keep: Collection[int]) -> bool:
        """Take one block from `holder`, as `release` does; True if it turned CACHED."""
        blocks = self._holdings[holder]
        blocks.remove(block)
        if not blocks:
            del self._holdings[holder]
        return self._unhold(holder, block, keep)

    def reclaim(self, block: int) -> None:
        """Free a cached block, which the prefix tree has just given up."""
        assert self._states[block] is BlockState.CACHED, f"block {block} is {self._states[block].value}, not cached"
        self._leave(block, BlockState.FREE)
        self._free.append(block)

    def expect(self, holder: Holder) -> int:
        """Set a free block aside for a transfer to write; the caller has made sure that there is one."""
        block = self._free.pop()
        self._enter(block, BlockState.ARRIVING)
        self._arriving.setdefault(holder, []).append(block)
        return block

    def land(self, holder: Holder) -> int:
        """The next block that `holder` expects is written and verified: `holder` holds it from now on."""
        block = self._arriving[holder].pop(0)
        if not self._arriving[holder]:
            del self._arriving[holder]
        self._leave(block, BlockState.HELD)
        self._references[block] = 1
        self._holdings.setdefault(holder, []).append(block)
        return block

    def give_up(self, holder: Holder) -> None:
        """Free what `holder` still expects; the caller has made sure that no transfer can write it any more."""
        for block in reversed(self._arriving.pop(holder, ())):
            self._leave(block, BlockState.FREE)
            self._free.append(block)

    def check_counts(self) -> None:
        """Constant-time audit. Raises AccountingError if the counts do not add up to the pool."""
        total = self.num_free + self.num_held + self.num_lent + self.num_cached + self.num_arriving
        if total != self.num_blocks:
            raise AccountingError(
                f"{self.num_free} free + {self.num_held} held + {self.num_lent} lent + {self.num_cached} cached + "
                f"{self.num_arriving} arriving blocks are {total}, the pool has {self.num_blocks}"
            )

    def check(self, live: Mapping[Holder, Sequence[int]], registered: Collection[int]) -> None:
        """Full audit against `live`, the blocks that each living holder believes to have, and the prefix tree's.

        Raises AccountingError that names the holder that leaks, or the block that is in two states or in none.
        """
        self.check_counts()
        for holder, blocks in (*self._holdings.items(), *self._arriving.items()):
            if holder not in live:
                raise AccountingError(f"{holder} leaks: it has ended and still holds blocks {blocks}")
        for holder, believed in live.items():
            held = [*self._holdings.get(holder, ()), *self._arriving.get(holder, ())]
            if held != list(believed):
                raise AccountingError(f"{holder} has blocks {list(believed)}, the ledger says {held}")
        self._check_states()
        for block, state in enumerate(self._states):
            if state is BlockState.HELD or state is BlockState.LENT:
                continue
            if (state is BlockState.CACHED) is not (block in registered):
                raise AccountingError(f"block {block} is {state.value}, in the prefix tree: {block in registered}")

    def _check_states(self) -> None:
        references = [0] * self.num_blocks
        states = [BlockState.CACHED] * self.num_blocks
        for holder, blocks in self._holdings.items():
            lent = holder.kind is HolderKind.TRANSFER
            for block in blocks:
                references[block] += 1
                states[block] = BlockState.LENT if lent and states[block] is not BlockState.HELD else BlockState.HELD
        unheld = [(self._free, BlockState.FREE)]
        unheld += [(blocks, BlockState.ARRIVING) for blocks in self._arriving.values()]
        for listed, state in unheld:
            for block in listed:
                if references[block]:
                    raise AccountingError(f"block {block} is {state.value} and held by {self._holders_of(block)}")
                if states[block] is not BlockState.CACHED:
                    twice = "twice" if states[block] is state else f"and {states[block].value}"
                    raise AccountingError(f"block {block} is {state.value} {twice}")
                states[block] = state
        # whole lists compare fast; only a difference is looked for block by block
        if states != self._states or references != self._references:
            self._raise_first_difference(states, references)

    def _raise_first_difference(self, states: list[BlockState], references: list[int]) -> None:
        for block, (state, count) in enumerate(zip(states, references, strict=True)):
            if self._states[block] is not state or self._references[block] != count:
                raise AccountingError(
                    f"block {block} is {self._states[block].value} with {self._references[block]} references, expected "
                    f"{state.value} with {count}, held by {self._holders_of(block)}"
                )

    def _holders_of(self, block: int) -> str:
        return ", ".join(str(holder) for holder, blocks in self._holdings.items() if block in blocks) or "none"

    def _unhold(self, holder: Holder, block: int, keep: Collection[int]) -> bool:
        """One reference less; True if the block turned CACHED."""
        self._references[block] -= 1
        if holder.kind is HolderKind.TRANSFER:
            self._loans[block] -= 1
        if self._references[block]:
            if self._references[block] == self._loans[block] and self._states[block] is BlockState.HELD:
                self._leave(block, BlockState.LENT)
            return False
        if block in keep:
            self._leave(block, BlockState.CACHED)
            return True
        self._leave(block, BlockState.FREE)
        self._free.append(block)
        return False

    def _leave(self, block: int, state: BlockState) -> None:
        """Change the state of a block that is not free."""
        self._count(self._states[block], -1)
        self._enter(block, state)

    def _enter(self, block: int, state: BlockState) -> None:
        self._states[block] = state
        self._count(state, 1)

    def _count(self, state: BlockState, change: int) -> None:
        match state:
            case BlockState.HELD:
                self.num_held += change
            case BlockState.LENT:
                self.num_lent += change
            case BlockState.CACHED:
                self.num_cached += change
            case BlockState.ARRIVING:
                self.num_arriving += change
            case BlockState.FREE:
                pass
