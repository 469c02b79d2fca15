"""How late an event loop is: what it does between two looks delays everything that it serves."""

from __future__ import annotations

import asyncio

from baleen.clock import Clock
from baleen.metrics import Histogram

INTERVAL_S = 0.5


async def watch_lag(lag: Histogram, clock: Clock) -> None:
    """Observe the lag until cancelled."""
    while True:
        asked = clock.now()
        await asyncio.sleep(INTERVAL_S)
        lag.observe(max(0.0, clock.now() - asked - INTERVAL_S))
