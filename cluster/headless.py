"""The ranks of a Ray that has lost its head: nobody is left who could tell its actors to end, so they are told here."""

from __future__ import annotations

import asyncio
import time

from cluster.run_state import RunState
from cluster.status import drain_group, members

_POLL_S = 0.2


async def drain_all(state: RunState, timeout_s: float) -> None:
    """Let the requests of all ranks finish within `timeout_s`, and the ranks leave.

    Raises BaleenError if Redis or a rank gives no answer.
    """
    ends = time.monotonic() + timeout_s
    groups = {info.group for info in (await members(state.name, state.redis)).values()}
    await asyncio.gather(
        *(drain_group(state.name, state.redis, group, "the cluster ends", timeout_s, tls=state.tls) for group in groups)
    )
    # a lease ends with its rank, or soon after
    while await members(state.name, state.redis) and time.monotonic() < ends:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
