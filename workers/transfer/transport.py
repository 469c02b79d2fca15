"""The contract between the step loop and a transport: what is sent, what may land, and what the loop hears of it.

The step loop owns every block; a transport owns threads and connections. It reads a block only between `Push.send` and
the news that the block is pushed or the push has ended, and writes one only between `Transport.expect` and the news
that the landing has ended, or a `revoke` that gave True. News come through the step loop's inbox, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from baleen.blocks import BlockHash
from baleen.errors import BaleenError
from workers.cache.block_bytes import BlockLayout


class TransferError(BaleenError):
    """A transfer was refused, cut or damaged."""


@dataclass(frozen=True, slots=True)
class CacheIdentity:
    """What must be equal on both sides for a block of one to mean the same on the other. model: fingerprint, hex."""

    model: str
    layout: BlockLayout

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for all of it in the header of every block."""
        return blake2b(str(self).encode(), digest_size=16).digest()

    def __str__(self) -> str:
        return f"model {self.model} with cache {self.layout}"


@dataclass(frozen=True, slots=True)
class Landing:
    """What may arrive for a ticket: blocks first_block, first_block + 1, ..., each with its hash, into `block_ids`.

    timeout_s: the reservation's whole time, after which nobody can be interested.
    """

    ticket: str
    first_block: int
    block_ids: tuple[int, ...]
    hashes: tuple[BlockHash, ...]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class BlockLanded:
    """Block `index` of the prompt is written and verified. Blocks of one ticket land in order."""

    ticket: str
    index: int


@dataclass(frozen=True, slots=True)
class LandingEnded:
    """Nothing is written for this ticket any more. failure: why it ended early, or None."""

    ticket: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class BlockPushed:
    """The destination has the next block, in the order of `Push.send`, which is not read any more."""

    push: int


@dataclass(frozen=True, slots=True)
class PushEnded:
    """No block is read any more. failure: why not all were pushed, or None."""

    push: int
    failure: str | None


TransferNews = BlockLanded | LandingEnded | BlockPushed | PushEnded


@dataclass(slots=True, eq=False)
class TransportCounts:
    """damaged: blocks whose checksum was wrong. fenced: transfers and blocks whose reservation was over or unknown.

    block_bytes: of each block that was not.
    """

    block_bytes: int = 0
    damaged: int = 0
    fenced: int = 0


class Push(Protocol):
    """One transfer to one destination. No method blocks; after `finish` or `cancel` comes PushEnded, once."""

    def send(self, index: int, block_id: int, block_hash: BlockHash) -> None:
        """Queue the block at place `index` of the prompt; indexes follow on each other."""
        ...

    def finish(self) -> None:
        """All blocks are queued."""
        ...

    def cancel(self, reason: str) -> None:
        """Stop as soon as possible."""
        ...


class Transport(Protocol):
    """Moves blocks between ranks. Only the step loop's thread calls it. name: of the kind, in reports."""

    name: str

    @property
    def counts(self) -> TransportCounts:
        """What it refused, for any thread."""
        ...

    @property
    def address(self) -> str:
        """`host:port` at which this rank takes blocks."""
        ...

    def start(self, post: Callable[[TransferNews], object]) -> None:
        """Begin to take connections; news go to `post`, from any thread."""
        ...

    def expect(self, landing: Landing) -> None:
        """Accept one connection with this ticket."""
        ...

    def revoke(self, ticket: str) -> bool:
        """Let nothing land for this ticket from now on.

        True: nothing writes into its blocks any more. False: something still might, and LandingEnded follows soon.
        """
        ...

    def push(self, number: int, address: str, ticket: str, first_block: int, num_blocks: int) -> Push:
        """Begin a transfer, which news call `number`; a failure to connect is news too."""
        ...

    def close(self) -> None:
        """Cut every connection and stop listening."""
        ...
