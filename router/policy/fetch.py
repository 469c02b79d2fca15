"""What it would save to fetch a longer prefix from the rank that holds the longest, before computing the rest.

Each block that is fetched saves the time to compute it and costs the time to move it, and every fetch costs one
`handoff_s`. Both grow with the blocks, so that either all that is missing is fetched or nothing. Nothing is fetched
from a rank that drains, or that failed to deliver lately.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baleen.blocks import BLOCK_TOKENS
from router.policy.columns import Columns, Figures
from router.policy.snapshot import FetchPlan, Parameters, Query, Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """The longest prefix that can be fetched. holder: its position; num_blocks: its length.

    Over all ranks: fetched, the blocks that each would fetch, 0 where that saves nothing; gain_s, what it saves.
    """

    holder: int
    num_blocks: int
    fetched: Figures
    gain_s: Figures


def best_offer(columns: Columns, held: Figures, speed: Figures, query: Query, parameters: Parameters) -> Offer | None:
    """What ranks that hold `held` blocks and compute at `speed` could fetch; None if nobody gains by it."""
    if not parameters.fetch or not query.cached_blocks:
        return None
    barred = [columns.positions[name] for name in query.no_fetch if name in columns.positions]
    offered = np.where(columns.draining, 0.0, held)
    offered[barred] = 0.0
    num_blocks = offered.max()
    longest = (offered == num_blocks).nonzero()[0]
    calm = longest[columns.num_requests[longest] == columns.num_requests[longest].min()]
    holder = int(calm[columns.chances(query.seed, calm).argmin()])
    missing = np.maximum(0.0, num_blocks - held)
    bytes_per_s = query.transfer_bytes_per_s or parameters.transfer_bytes_per_s
    move_s = parameters.handoff_s + missing * parameters.block_bytes / bytes_per_s
    gain_s = np.maximum(0.0, missing * BLOCK_TOKENS / speed - move_s)
    if not gain_s.any():
        return None
    return Offer(holder, int(num_blocks), np.where(gain_s > 0, missing, 0.0), gain_s)


def plan(snapshot: Snapshot, offer: Offer | None, position: int, speed: float) -> FetchPlan | None:
    """What the rank at `position`, which computes at `speed`, is to fetch."""
    if offer is None or not offer.fetched[position]:
        return None
    num_fetched = int(offer.fetched[position])
    return FetchPlan(
        holder=snapshot.ranks[offer.holder].incarnation,
        num_blocks=offer.num_blocks,
        num_fetched=num_fetched,
        gain_s=float(offer.gain_s[position]),
        compute_s=num_fetched * BLOCK_TOKENS / speed,
    )
