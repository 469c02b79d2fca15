"""Token buckets as plain arithmetic: a level that rises to a limit in a minute. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from router.gateway.accounts.records import Allowance

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """level: what may be taken; below 0 after something turned out larger than was reserved. at_s: as of when."""

    level: float
    at_s: float


def filled(bucket: Bucket | None, *, limit: int, now_s: float) -> Bucket:
    """The bucket at `now_s`; a new one (None) is full. A clock that went back, as after a reboot, adds nothing."""
    if bucket is None:
        return Bucket(float(limit), now_s)
    gained = max(0.0, now_s - bucket.at_s) * limit / MINUTE_S
    return Bucket(min(float(limit), bucket.level + gained), now_s)


def wait_s(bucket: Bucket, amount: float, *, limit: int) -> float:
    """Seconds until `amount` can be taken, 0 if it can be now."""
    return max(0.0, (amount - bucket.level) * MINUTE_S / limit)


def allowance(bucket: Bucket, *, limit: int) -> Allowance:
    """What is left, for people."""
    return Allowance(limit, max(0, int(bucket.level)), wait_s(bucket, limit, limit=limit))
