"""What must hold of the requests of a rank beside the counts of its blocks. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baleen.blocks import BLOCK_TOKENS
from workers.cache.blocks import BlockCache
from workers.cache.ledger import AccountingError
from workers.engine.request import Request


def check_placed(live: Sequence[Request], placed: Sequence[Request]) -> None:
    """Raise AccountingError unless each live request waits or runs, and once."""
    if len(placed) != len(live) or {id(request) for request in placed} != {id(request) for request in live}:
        raise AccountingError(f"{len(live)} live requests, but {len(placed)} wait or run")


def check_slots(slots: Iterable[int], max_running: int) -> None:
    """Raise AccountingError unless each slot is free or taken, and once."""
    found = sorted(slots)
    if found != list(range(max_running)):
        raise AccountingError(f"slots free or taken are {found}, expected 0 to {max_running - 1}")


def check_private(running: Iterable[Request], blocks: BlockCache) -> None:
    """Raise AccountingError if a request would write into a block that others see."""
    for request in running:
        for block in request.block_ids[request.num_computed // BLOCK_TOKENS :]:
            if not blocks.is_private(block):
                raise AccountingError(f"{request.key} would write into block {block}, which is shared")
