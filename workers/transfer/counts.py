"""What a rank's transfers have done since it started: counted by the step loop from the news of any transport."""

from __future__ import annotations

from dataclasses import dataclass, field

from baleen.metrics import Histogram, histogram


def _seconds() -> Histogram:
    return histogram("kv_transfer_seconds")


@dataclass(slots=True, eq=False)
class MoveCounts:
    """in: to this rank. expired: reservations whose time ran out. Failures are transfers that ended early."""

    blocks_in: int = 0
    blocks_out: int = 0
    failures_in: int = 0
    failures_out: int = 0
    expired: int = 0
    seconds_in: Histogram = field(default_factory=_seconds)
    seconds_out: Histogram = field(default_factory=_seconds)
