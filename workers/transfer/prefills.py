"""What this rank computes for others: prefill-only requests, and the transfers that push their blocks.

A block is lent to its transfer as soon as it is computed, or found in the cache, and comes back when the destination
has acknowledged it or the transfer has ended. The answer is given once the request and its transfer have both ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, root_hash
from baleen.clock import Clock
from baleen.errors import NotReady
from baleen.ids import RequestId
from workers.cache.blocks import BlockCache
from workers.cache.ledger import AccountingError, Holder, HolderKind
from workers.engine.batch import FinishReason, RequestOutput
from workers.engine.messages import Destination, Prefill, PrefillDone
from workers.engine.request import Request
from workers.transfer.counts import MoveCounts
from workers.transfer.transport import BlockPushed, Push, PushEnded, Transport

STALL_TIMEOUT_S = 30.0
"""A transfer that has blocks and gets none of them acknowledged for so long is given up."""


@dataclass(slots=True, eq=False)
class _Prefill:
    """One Prefill command under way.

    hashes: of all its blocks. next_block: the first one that is not handed to the transfer yet. progress_at: when the
    transfer last had nothing to do or got on.
    """

    request_id: RequestId
    holder: Holder
    destination: Destination | None
    hashes: list[BlockHash]
    number: int
    deadline: float | None
    next_block: int = 0
    num_cached: int = 0
    num_lent: int = 0
    num_pushed: int = 0
    progress_at: float = 0.0
    pushing_since: float | None = None
    push: Push | None = None
    is_computing: bool = True
    failure: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self.is_computing and self.push is None

    @property
    def limit(self) -> float | None:
        """When its transfer is given up, unless it gets on."""
        limits = [self.progress_at + STALL_TIMEOUT_S] if self.num_lent else []
        if self.deadline is not None:
            limits.append(self.deadline)
        return min(limits, default=None)


class Prefills:
    """All prefills of a rank. fingerprint: of model and record format, as in the names of blocks.

    numbers: for transfers, unique in the rank.
    """

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
        self._counts = counts or MoveCounts()
        self._by_request: dict[RequestId, _Prefill] = {}
        self._by_push: dict[int, _Prefill] = {}
        self._numbers = numbers
        self._done: list[PrefillDone] = []

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._by_request

    @property
    def is_pushing(self) -> bool:
        """Whether any transfer has not ended."""
        return bool(self._by_push)

    @property
    def next_deadline(self) -> float | None:
        """When the next transfer is given up, unless it gets on."""
        limits = [limit for entry in self._by_push.values() if (limit := entry.limit) is not None]
        return min(limits, default=None)

    def require_possible(self, command: Prefill) -> None:
        """Raise InvalidRequest or NotReady if the destination cannot be served at all."""
        if command.destination is None:
            return
        if self._transport is None:
            raise NotReady("this rank sends no transfers")
        command.destination.require_possible()

    def begin(self, command: Prefill, num_blocks: int) -> None:
        """Note a prefill of `num_blocks` blocks, whose request the scheduler has taken; of none, it is over at once."""
        root = root_hash(self._fingerprint, command.cache_salt.encode())
        entry = _Prefill(
            request_id=command.request_id,
            holder=Holder(command.request_id, 0, HolderKind.TRANSFER),
            destination=command.destination,
            hashes=chain_hashes(root, command.token_ids)[:num_blocks],
            number=next(self._numbers),
            deadline=command.deadline,
            is_computing=num_blocks > 0,
        )
        self._by_request[command.request_id] = entry
        self._answer_if_over(entry)

    def computed(self, request: Request) -> None:
        """Push what the request has newly computed or found; it holds its blocks now and perhaps never again."""
        entry = self._by_request[request.id]
        destination = entry.destination
        entry.num_cached = request.num_cached // BLOCK_TOKENS
        if destination is None or entry.failure is not None:
            return
        num_blocks = len(entry.hashes)
        if entry.push is None and entry.next_block == 0 and destination.first_block < num_blocks:
            self._begin_push(entry, destination)
        end = request.num_computed // BLOCK_TOKENS
        for index in range(max(entry.next_block, destination.first_block), end):
            self._send(entry, index, request.block_ids[index])
        entry.next_block = max(entry.next_block, end)
        if end == num_blocks and entry.push is not None:
            entry.push.finish()

    def ended(self, output: RequestOutput) -> None:
        """The scheduler has ended the request, which has no blocks any more."""
        entry = self._by_request[output.request_id]
        assert entry.is_computing and output.finish is not None
        entry.is_computing = False
        if output.finish is not FinishReason.LENGTH:
            self._fail(entry, output.detail or output.finish.value)
        self._answer_if_over(entry)

    def abort(self, request_id: RequestId) -> None:
        """Stop the transfer of a prefill; the scheduler ends its request."""
        entry = self._by_request.get(request_id)
        if entry is not None:
            self._fail(entry, FinishReason.CANCELLED.value)

    def pushed(self, news: BlockPushed) -> None:
        """The destination has the next block of a transfer."""
        entry = self._by_push.get(news.push)
        if entry is None:
            return
        self._blocks.return_loan(entry.holder)
        entry.num_lent -= 1
        entry.num_pushed += 1
        self._counts.blocks_out += 1
        entry.progress_at = self._clock.now()

    def push_ended(self, news: PushEnded) -> RequestId | None:
        """A transfer reads no block any more. Returns the request that need not be computed further, if any."""
        entry = self._by_push.pop(news.push, None)
        if entry is None:
            return None
        self._blocks.recall(entry.holder)
        entry.num_lent = 0
        entry.push = None
        assert entry.pushing_since is not None
        self._counts.seconds_out.observe(self._clock.now() - entry.pushing_since)
        self._counts.failures_out += news.failure is not None
        if news.failure is not None:
            entry.failure = entry.failure or news.failure
        self._answer_if_over(entry)
        return entry.request_id if entry.failure is not None and entry.is_computing else None

    def reap(self) -> None:
        """Give up transfers that do not get on, or whose request is past its deadline."""
        if not self._by_push:
            return
        now = self._clock.now()
        for entry in self._by_push.values():
            if (limit := entry.limit) is None or now < limit:
                continue
            if entry.deadline is not None and entry.deadline <= now:
                self._fail(entry, FinishReason.DEADLINE.value)
            else:
                self._fail(entry, f"no block was acknowledged within {STALL_TIMEOUT_S:g} s")
            # it was told; its end follows
            entry.deadline, entry.progress_at = None, now

    def cancel_all(self, reason: str) -> None:
        """Stop every transfer; the scheduler ends the requests."""
        for entry in self._by_request.values():
            self._fail(entry, reason)

    def stop(self, reason: str) -> None:
        """The rank leaves and hears no more news: answer for everything that has not ended."""
        self.cancel_all(reason)
        self._done += [self._answer(entry) for entry in self._by_request.values()]
        self._by_request.clear()
        self._by_push.clear()

    def take_done(self) -> list[PrefillDone]:
        """Answers since the last call."""
        done, self._done = self._done, []
        return done

    def check(self) -> None:
        """Raise AccountingError if a prefill is kept that nothing will end."""
        for entry in self._by_request.values():
            if entry.is_over or (entry.push is not None) is not (entry.number in self._by_push):
                raise AccountingError(f"{entry.holder} has ended and was not answered")

    def _begin_push(self, entry: _Prefill, destination: Destination) -> None:
        assert self._transport is not None
        first = destination.first_block
        entry.progress_at = entry.pushing_since = self._clock.now()
        self._by_push[entry.number] = entry
        entry.push = self._transport.push(
            entry.number, destination.address, destination.ticket, first, len(entry.hashes) - first
        )

    def _send(self, entry: _Prefill, index: int, block_id: int) -> None:
        if entry.push is None:
            return
        self._blocks.lend(entry.holder, block_id)
        if not entry.num_lent:
            entry.progress_at = self._clock.now()
        entry.num_lent += 1
        entry.push.send(index, block_id, entry.hashes[index])

    def _fail(self, entry: _Prefill, reason: str) -> None:
        entry.failure = entry.failure or reason
        if entry.push is not None:
            entry.push.cancel(reason)

    def _answer_if_over(self, entry: _Prefill) -> None:
        if entry.is_over:
            del self._by_request[entry.request_id]
            self._done.append(self._answer(entry))

    def _answer(self, entry: _Prefill) -> PrefillDone:
        return PrefillDone(
            entry.request_id,
            len(entry.hashes),
            entry.num_pushed,
            entry.num_cached,
            entry.failure,
            pushed_from=entry.pushing_since,
        )
