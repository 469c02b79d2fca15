"""All that a rank exchanges with others, as the step loop sees it: what it expects, and what it sends."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from baleen.clock import Clock
from baleen.ids import RequestId
from workers.cache.blocks import BlockCache
from workers.transfer.counts import MoveCounts
from workers.transfer.fetches import Fetches
from workers.transfer.prefills import Prefills
from workers.transfer.reservations import Reservations
from workers.transfer.transport import (
    BlockLanded,
    BlockPushed,
    LandingEnded,
    PushEnded,
    TransferNews,
    Transport,
    TransportCounts,
)


class Moves:
    """Reservations, prefills and fetches of one rank, and the transport of all. Owned by the step loop's thread.

    fingerprint: of model and record format, as in the names of blocks. prefix_cache: whether requests may share blocks.
    """

    def __init__(
        self,
        blocks: BlockCache,
        transport: Transport | None,
        clock: Clock,
        *,
        fingerprint: bytes,
        prefix_cache: bool = True,
    ) -> None:
        self._blocks = blocks
        self._transport = transport
        self.counts = MoveCounts()
        self.reservations = Reservations(
            blocks, transport, clock, fingerprint=fingerprint, prefix_cache=prefix_cache, counts=self.counts
        )
        numbers = itertools.count(1)
        self.prefills = Prefills(blocks, transport, clock, fingerprint=fingerprint, numbers=numbers, counts=self.counts)
        self.fetches = Fetches(blocks, transport, clock, fingerprint=fingerprint, numbers=numbers, counts=self.counts)

    @property
    def address(self) -> str:
        """Where this rank takes transfers, or an empty text."""
        return self._transport.address if self._transport is not None else ""

    @property
    def transport(self) -> str:
        """What moves the blocks, or an empty text."""
        return self._transport.name if self._transport is not None else ""

    @property
    def is_pushing(self) -> bool:
        """Whether any transfer to another rank has not ended."""
        return self.prefills.is_pushing or len(self.fetches) > 0

    @property
    def transport_counts(self) -> TransportCounts:
        """What the transport refused."""
        return self._transport.counts if self._transport is not None else TransportCounts()

    @property
    def next_deadline(self) -> float | None:
        """When `reap` has something to do, if nothing happens before."""
        deadlines = [part.next_deadline for part in (self.reservations, self.prefills, self.fetches)]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def start(self, post: Callable[[TransferNews], object]) -> None:
        """Take transfers from now on; news go to `post`, from any thread."""
        if self._transport is not None:
            self._transport.start(post)

    def hear(self, news: TransferNews) -> RequestId | None:
        """Take in what the transport did. Returns a request whose blocks nobody needs any more, if there is one."""
        match news:
            case BlockLanded():
                self.reservations.landed(news)
            case LandingEnded():
                self.reservations.landing_ended(news)
            case BlockPushed():
                self.prefills.pushed(news)
                self.fetches.pushed(news)
            case PushEnded():
                self.fetches.push_ended(news)
                return self.prefills.push_ended(news)
        return None

    def reap(self) -> bool:
        """End what is past its deadline; whether a reservation was."""
        self.prefills.reap()
        self.fetches.reap()
        return self.reservations.reap()

    def cancel_pushes(self, reason: str) -> None:
        """End every transfer to another rank."""
        self.prefills.cancel_all(reason)
        self.fetches.cancel_all(reason)

    def stop_pushes(self, reason: str) -> None:
        """The rank leaves and hears no more news: answer for every transfer that has not ended."""
        self.prefills.stop(reason)
        self.fetches.stop(reason)

    def close(self) -> None:
        """The rank leaves: cut every connection."""
        if self._transport is not None:
            self._transport.close()

    def check(self) -> None:
        """Audit of all reservations, prefills and fetches. Raises AccountingError."""
        self.reservations.check()
        self.prefills.check()
        self.fetches.check()
