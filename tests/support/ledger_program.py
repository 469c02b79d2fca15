"""A gateway's accounts as a process to be killed: opens and settles requests without end, and says what is done.

usage: python -m tests.support.ledger_program DATABASE KEY_ID START

Lines on stdout, after the fact: `open N`, `settled N`. Every request costs N % 7 + 1 picos.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from baleen.clock import SystemClock
from baleen.telemetry import Log
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.money import PriceList, Usage
from router.gateway.accounts.records import Entry, Opening


async def run(path: Path, key_id: str, start: int) -> None:
    accounts = Accounts(path, PriceList(), clock=SystemClock(), log=Log("off"))
    await accounts.start()
    number = start

    async def one(number: int) -> None:
        request_id, cost = f"r{number}", number % 7 + 1
        opening = Opening(request_id=request_id, key_id=key_id, tenant="t", model="m", most_tokens=9, most_cost=cost)
        await accounts._clerk.ask(lambda store: store.open(opening, now_s=0.0, wall_s=0.0))
        os.write(1, f"open {number}\n".encode())
        entry = Entry(request_id=request_id, outcome="finished", usage=Usage(completion_tokens=3), cost=cost)
        done = accounts._clerk.tell(lambda store: store.settle(entry, now_s=0.0, wall_s=0.0))
        assert await asyncio.wrap_future(done)
        os.write(1, f"settled {number}\n".encode())

    while True:
        await asyncio.gather(*(one(number + place) for place in range(8)))
        number += 8


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
