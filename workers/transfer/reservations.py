"""What this rank expects from others: reservations from their ticket to the admission of their request.

A reservation pins the blocks of its prompt that are cached and sets others aside, which a transfer writes. Each block
that has landed is pinned too, and puts the deadline off: a long prefill may take its time as long as it gets on. It
ends by a Submit with its ticket, by release, or at its deadline, and then:

    the landing is fenced (revoked)  ->  blocks that did not land are freed  ->  pins are let go

After a Submit the pins stay until the scheduler lets go of them. All of this happens in the step loop's thread, and
nothing of it waits for a message from another rank.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from baleen.blocks import chain_hashes, root_hash, shareable_blocks
from baleen.clock import Clock
from baleen.errors import CapacityError, InvalidRequest, NotReady, QueueFull
from baleen.ids import RequestId
from workers.cache.blocks import Arrival, BlockCache
from workers.cache.ledger import AccountingError, Holder, HolderKind
from workers.engine.messages import Reservation, Reserve
from workers.transfer.counts import MoveCounts
from workers.transfer.transport import BlockLanded, Landing, LandingEnded, Transport

MOST_TIMEOUT_S = 600.0
"""Longest life of a reservation."""


@dataclass(slots=True, eq=False)
class _Reserved:
    """`salt` is the one that the request came with, the arrival's may be one that nobody else has."""

    ticket: str
    salt: bytes
    arrival: Arrival
    made_at: float
    timeout_s: float
    deadline: float
    is_landing: bool
    pinned: bool = True
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a Submit gets for its ticket: the salt to look blocks up by, and how to let go of their pins."""

    salt: bytes
    unpin: Callable[[], None]


class Reservations:
    """All reservations of a rank. fingerprint: of model and record format, as in the names of blocks."""

    def __init__(
        self,
        blocks: BlockCache,
        transport: Transport | None,
        clock: Clock,
        *,
        fingerprint: bytes,
        prefix_cache: bool,
        counts: MoveCounts | None = None,
    ) -> None:
        self._blocks = blocks
        self._transport = transport
        self._clock = clock
        self._fingerprint = fingerprint
        self._prefix_cache = prefix_cache
        self._counts = counts or MoveCounts()
        self._by_ticket: dict[str, _Reserved] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_ticket)

    @property
    def next_deadline(self) -> float | None:
        """When the next reservation expires."""
        return min((entry.deadline for entry in self._by_ticket.values() if not entry.ended), default=None)

    def reserve(self, command: Reserve, *, reserve: int) -> Reservation:
        """Set blocks aside so that `reserve` others stay available.

        Raises CapacityError if the prompt can never fit, QueueFull if it does not now, InvalidRequest, NotReady.
        """
        if self._transport is None:
            raise NotReady("this rank takes no transfers")
        if not 0 < command.timeout_s <= MOST_TIMEOUT_S:
            raise InvalidRequest(
                f"timeout is {command.timeout_s} s, must be above 0 and at most {MOST_TIMEOUT_S:g}", field="timeout_s"
            )
        num_wanted = shareable_blocks(len(command.token_ids))
        if num_wanted + 1 > self._blocks.num_blocks:
            raise CapacityError(
                f"prompt of {len(command.token_ids)} tokens needs {num_wanted + 1} cache blocks, "
                f"the whole pool has {self._blocks.num_blocks}"
            )
        salt = command.cache_salt.encode()
        holder = Holder(RequestId(str(self._count)), 0, HolderKind.RESERVATION)
        tree_salt = salt if self._prefix_cache else secrets.token_bytes(16)
        arrival = self._blocks.expect(holder, tree_salt, command.token_ids, reserve=reserve)
        if arrival is None:
            raise QueueFull(
                f"{num_wanted} blocks are wanted while {reserve} must stay available, "
                f"{self._blocks.num_available} of {self._blocks.num_blocks} are"
            )
        self._count += 1
        num_held = arrival.num_at_hand
        entry = _Reserved(
            ticket=secrets.token_urlsafe(18),
            salt=salt,
            arrival=arrival,
            made_at=self._clock.now(),
            timeout_s=command.timeout_s,
            deadline=self._clock.now() + command.timeout_s,
            is_landing=num_held < num_wanted,
        )
        self._by_ticket[entry.ticket] = entry
        if entry.is_landing:
            hashes = chain_hashes(root_hash(self._fingerprint, salt), command.token_ids)[num_held:num_wanted]
            block_ids = tuple(arrival.block_ids[num_held:])
            self._transport.expect(Landing(entry.ticket, num_held, block_ids, tuple(hashes), command.timeout_s))
        return Reservation(entry.ticket, self._transport.address, num_held, num_wanted - num_held, command.timeout_s)

    def claim(self, ticket: str, salt: bytes) -> Claim | None:
        """End a reservation for the request that it was made for; None if it is over, which costs the blocks only.

        Raises InvalidRequest for another salt than that of the reservation.
        """
        entry = self._by_ticket.get(ticket)
        if entry is None or entry.ended:
            return None
        if entry.salt != salt:
            raise InvalidRequest("the reservation of this ticket was made with another cache salt", field="ticket")
        self._end(entry)
        return Claim(entry.arrival.salt, lambda: self._unpin(entry))

    def release(self, ticket: str) -> None:
        """End a reservation that nobody needs; unknown and ended ones are left alone."""
        entry = self._by_ticket.get(ticket)
        if entry is not None and not entry.ended:
            self._end(entry)
            self._unpin(entry)

    def release_all(self) -> None:
        """End every reservation."""
        for ticket in list(self._by_ticket):
            self.release(ticket)

    def reap(self) -> bool:
        """End what is past its deadline; whether there was any."""
        now = self._clock.now()
        late = [entry for entry in self._by_ticket.values() if not entry.ended and entry.deadline <= now]
        self._counts.expired += len(late)
        for entry in late:
            self.release(entry.ticket)
        return bool(late)

    def landed(self, news: BlockLanded) -> None:
        """The next block of a reservation is written and verified."""
        entry = self._by_ticket.get(news.ticket)
        if entry is None or entry.ended:
            return
        assert entry.is_landing
        entry.deadline = self._clock.now() + entry.timeout_s
        self._counts.blocks_in += 1
        if not self._blocks.land(entry.arrival):
            # its name is taken by another content, so that neither it nor those after it can be shared
            self._fence(entry)

    def landing_ended(self, news: LandingEnded) -> None:
        """Nothing writes into the blocks of a reservation any more."""
        entry = self._by_ticket.get(news.ticket)
        if entry is not None and entry.is_landing:
            self._counts.seconds_in.observe(self._clock.now() - entry.made_at)
            self._counts.failures_in += news.failure is not None
            self._finish_landing(entry)

    def check(self) -> None:
        """Raise AccountingError if a reservation has a landing without blocks, or is kept after its end."""
        for entry in self._by_ticket.values():
            num_expected = len(entry.arrival.block_ids) - entry.arrival.num_at_hand
            if (num_expected and not entry.is_landing) or not (entry.pinned or entry.is_landing):
                raise AccountingError(f"{entry.arrival.holder} expects {num_expected} blocks that nobody writes")

    def _end(self, entry: _Reserved) -> None:
        entry.ended = True
        self._fence(entry)

    def _fence(self, entry: _Reserved) -> None:
        assert self._transport is not None
        if entry.is_landing and self._transport.revoke(entry.ticket):
            self._finish_landing(entry)

    def _finish_landing(self, entry: _Reserved) -> None:
        entry.is_landing = False
        self._blocks.give_up(entry.arrival)
        self._forget_if_over(entry)

    def _unpin(self, entry: _Reserved) -> None:
        entry.pinned = False
        self._forget_if_over(entry)

    def _forget_if_over(self, entry: _Reserved) -> None:
        """Let go of the pins once nothing can land beside them."""
        if entry.ended and not entry.pinned and not entry.is_landing:
            self._blocks.unpin(entry.arrival.holder)
            del self._by_ticket[entry.ticket]
