"""What other ranks fetch of this rank's cache: transfers of blocks that are there. Nothing is computed for them.

All blocks of a fetch are lent to it before anything else can evict one, and come back together when its transfer ends,
so that in the order of eviction the end of the prefix still goes before its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baleen.blocks import chain_hashes, root_hash, shareable_blocks
from baleen.clock import Clock
from baleen.errors import NotReady, QueueFull
from baleen.ids import RequestId
from workers.cache.blocks import BlockCache
from workers.cache.ledger import AccountingError, Holder, HolderKind
from workers.engine.messages import Fetch, FetchDone
from workers.transfer.counts import MoveCounts
from workers.transfer.transport import BlockPushed, Push, PushEnded, Transport

MOST_FETCHES = 16
"""Fetches under way at once; each has a thread, and they share one network. Those beyond find it cheaper to compute."""


@dataclass(slots=True, eq=False)
class _Fetch:
    """One Fetch command under way. num_found: leading blocks of its prompt that are here."""

    command: Fetch
    holder: Holder
    push: Push
    num_found: int
    began_at: float
    num_pushed: int = 0
    failure: str | None = None
    told: bool = False


class Fetches:
    """All fetches from a rank. fingerprint: of model and record format. numbers: for transfers, unique in the rank."""

    def __init__(
        self,
        blocks: BlockCache,
        transport: Transport | None,
        clock: Clock,
        *,
        fingerprint: bytes,
        numbers: Iterator[int],
        counts: MoveCounts | None = None,
    ) -> None:
        self._blocks = blocks
        self._transport = transport
        self._clock = clock
        self._fingerprint = fingerprint
        self._numbers = numbers
        self._counts = counts or MoveCounts()
        self._by_push: dict[int, _Fetch] = {}

    def __len__(self) -> int:
        """Fetches that have not ended."""
        return len(self._by_push)

    @property
    def next_deadline(self) -> float | None:
        """When the next one is given up."""
        return min((entry.command.deadline for entry in self._by_push.values() if not entry.told), default=None)

    def begin(self, command: Fetch) -> None:
        """Push what is here of the prompt from the destination's first block on; the command's reply gets a FetchDone.

        Raises InvalidRequest, NotReady without a transport, QueueFull if too many are under way.
        """
        destination = command.destination
        destination.require_possible()
        if self._transport is None:
            raise NotReady("this rank sends no transfers")
        if len(self._by_push) >= MOST_FETCHES:
            raise QueueFull(f"{len(self._by_push)} fetches from this rank are under way, at most {MOST_FETCHES} may be")
        salt = command.cache_salt.encode()
        num_wanted = shareable_blocks(len(command.token_ids))
        block_ids = self._blocks.find_prefix(salt, command.token_ids)
        first, num_found = destination.first_block, len(block_ids)
        failure = None if num_found >= num_wanted else f"of {num_wanted} blocks only the first {num_found} are here"
        if num_found <= first or first >= num_wanted:
            _answer(command, FetchDone(num_found, 0, failure))
            return
        number = next(self._numbers)
        holder = Holder(RequestId(f"fetch {number}"), 0, HolderKind.TRANSFER)
        for block_id in block_ids[first:]:
            self._blocks.lend(holder, block_id)
        push = self._transport.push(number, destination.address, destination.ticket, first, num_wanted - first)
        self._by_push[number] = _Fetch(command, holder, push, num_found, self._clock.now(), failure=failure)
        hashes = chain_hashes(root_hash(self._fingerprint, salt), command.token_ids)
        for index in range(first, num_found):
            push.send(index, block_ids[index], hashes[index])
        push.finish()

    def withdraw(self, command: Fetch) -> None:
        """Nobody waits for the answer any more; one that has ended is left alone."""
        for entry in self._by_push.values():
            if entry.command is command:
                self._fail(entry, "cancelled")

    def pushed(self, news: BlockPushed) -> None:
        """The destination has the next block of a transfer, perhaps one of somebody else's."""
        entry = self._by_push.get(news.push)
        if entry is not None:
            entry.num_pushed += 1
            self._counts.blocks_out += 1

    def push_ended(self, news: PushEnded) -> None:
        """A transfer, perhaps somebody else's, reads no block any more."""
        entry = self._by_push.pop(news.push, None)
        if entry is not None:
            self._blocks.recall(entry.holder)
            self._counts.seconds_out.observe(self._clock.now() - entry.began_at)
            self._counts.failures_out += news.failure is not None
            failure = news.failure or entry.failure
            _answer(entry.command, FetchDone(entry.num_found, entry.num_pushed, failure))

    def reap(self) -> None:
        """Give up what is past its deadline."""
        if self._by_push:
            now = self._clock.now()
            for entry in self._by_push.values():
                if entry.command.deadline <= now:
                    self._fail(entry, "deadline")

    def cancel_all(self, reason: str) -> None:
        """End every transfer."""
        for entry in self._by_push.values():
            self._fail(entry, reason)

    def stop(self, reason: str) -> None:
        """The rank leaves and hears no more news: answer for everything that has not ended."""
        self.cancel_all(reason)
        for entry in self._by_push.values():
            _answer(entry.command, FetchDone(entry.num_found, entry.num_pushed, reason))
        self._by_push.clear()

    def check(self) -> None:
        """Raise AccountingError if a fetch has been answered and still has its blocks."""
        for entry in self._by_push.values():
            if entry.command.reply.done() and not entry.command.reply.cancelled():
                raise AccountingError(f"{entry.holder} was answered before its end")

    def _fail(self, entry: _Fetch, reason: str) -> None:
        """Once; the end of the transfer follows."""
        if not entry.told:
            entry.told = True
            entry.push.cancel(reason)


def _answer(command: Fetch, done: FetchDone) -> None:
    if command.reply.set_running_or_notify_cancel():
        command.reply.set_result(done)
