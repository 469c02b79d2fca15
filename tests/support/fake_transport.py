"""A transport without threads: a test decides what arrives and what is acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baleen.blocks import BlockHash
from workers.transfer.transport import Landing, TransferNews, TransportCounts


@dataclass(eq=False)
class FakePush:
    """See Push. blocks: (index, block_id, hash) that were given and not acknowledged yet."""

    number: int
    ticket: str
    first_block: int
    num_blocks: int
    blocks: list[tuple[int, int, BlockHash]] = field(default_factory=list)
    finished: bool = False
    cancelled: str | None = None

    def send(self, index: int, block_id: int, block_hash: BlockHash) -> None:
        assert not self.finished
        self.blocks.append((index, block_id, block_hash))

    def finish(self) -> None:
        assert not self.finished
        self.finished = True

    def cancel(self, reason: str) -> None:
        self.cancelled = self.cancelled or reason


class FakeTransport:
    """See Transport.

    landings: those that may still be written. connected: tickets with a writer. cut: tickets that were revoked under
    their writer, who may still write until the test tells the landing's end.
    """

    address = "fake:1"
    name = "fake"

    def __init__(self) -> None:
        self.landings: dict[str, Landing] = {}
        self.connected: set[str] = set()
        self.cut: set[str] = set()
        self.pushes: list[FakePush] = []
        self.counts = TransportCounts()

    def start(self, post: Callable[[TransferNews], object]) -> None:
        """Nothing comes by itself."""

    def expect(self, landing: Landing) -> None:
        assert landing.ticket not in self.landings
        self.landings[landing.ticket] = landing

    def revoke(self, ticket: str) -> bool:
        if ticket in self.connected:
            self.cut.add(ticket)
            return False
        self.landings.pop(ticket, None)
        return True

    def end(self, ticket: str) -> None:
        """The writer has gone."""
        del self.landings[ticket]
        self.connected.discard(ticket)
        self.cut.discard(ticket)

    def push(self, number: int, address: str, ticket: str, first_block: int, num_blocks: int) -> FakePush:
        push = FakePush(number, ticket, first_block, num_blocks)
        self.pushes.append(push)
        return push

    def close(self) -> None:
        """Nothing is open."""
