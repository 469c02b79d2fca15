"""How long the prefix index is wrong or blind: after a rank's death, and after Redis came back empty.

usage: python -m benchmarks.index_bounds [--trials 10] [--ranks 16] [--blocks 2048] [--program FILE]

With the leases, pauses and budgets that a cluster uses, and a lookup every 5 ms by the router's own client.

deaths: a rank, a process of its own that holds blocks, is killed at a random moment of its lease; ghosts are lookups
that still credit it, which a router would count only while its session to the rank seems to stand. restarts: Redis is
killed and started again, empty, while `ranks` of them live, each holding the same chain of `blocks`. blind: lookups
without an answer; partial: answered, without some rank or some of its blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from baleen import keyspace
from baleen.blocks import BlockHash
from baleen.clock import SystemClock
from baleen.telemetry import Log
from cluster.embedded import find_server
from router.breaker import Breaker
from router.index import LOOKUP_BUDGET_S, PrefixIndex, open_client
from tests.support.redis_server import RedisServer, chain, rank_info
from tests.support.shelf import Shelf
from workers.cache import announce
from workers.cache.announce import Announcer, EventFeed

CLUSTER = "benchmark"
INTERVAL_S = 0.005
GIVE_UP_S = 60.0


def be_ranks(url: str, names: Sequence[str], num_blocks: int) -> None:
    """Hold blocks and announce them until killed."""
    for name in names:
        shelf = Shelf()
        feed = EventFeed(shelf)
        client = announce.open_client(url)
        Announcer(client, CLUSTER, rank_info(name), feed, clock=SystemClock(), log=Log(write=_ignore)).start()
        shelf.store(chain(num_blocks))
        feed.publish()
    time.sleep(3600)


def _ignore(line: str) -> None:
    pass


def start_ranks(url: str, names: Sequence[str], num_blocks: int) -> BaseProcess:
    """Ranks in one process of their own."""
    process = multiprocessing.get_context("spawn").Process(target=be_ranks, args=(url, names, num_blocks), daemon=True)
    process.start()
    return process


async def ask(
    index: PrefixIndex,
    hashes: Sequence[BlockHash],
    begin: float,
    enough: Callable[[Mapping[str, int]], bool],
) -> list[tuple[float, bool, Mapping[str, int]]]:
    """A lookup every 5 ms until one is `enough`: of each, seconds since `begin`, if it was answered, the answer."""
    answers: list[tuple[float, bool, Mapping[str, int]]] = []
    while True:
        blind = index.counts.blind
        found = await index.prefixes(hashes)
        since = time.monotonic() - begin
        answers.append((since, index.counts.blind == blind, found))
        if enough(found):
            return answers
        assert since < GIVE_UP_S, found
        await asyncio.sleep(INTERVAL_S)


async def deaths(url: str, trials: int, num_blocks: int) -> list[dict[str, Any]]:
    """Each trial: how long and how often a dead rank was credited, and how often after one lease."""
    hashes = chain(num_blocks)
    rows = []
    index = PrefixIndex(open_client(url), CLUSTER, Breaker(SystemClock()))
    for trial in range(trials):
        name = f"rank{trial}"
        process = start_ranks(url, [name], num_blocks)
        await ask(index, hashes, time.monotonic(), lambda found, name=name: found.get(name) == num_blocks)  # type: ignore[misc]
        await asyncio.sleep(random.Random(trial).random() * keyspace.RENEW_INTERVAL_S)
        process.kill()
        process.join()
        died = time.monotonic()
        # a second beyond the first lookup that does not name it
        answers = await ask(index, hashes, died, lambda found, name=name: name not in found)  # type: ignore[misc]
        answers += await ask(index, hashes, died, lambda _, end=died + keyspace.LEASE_S + 1: time.monotonic() > end)  # type: ignore[misc]
        credited = [since for since, _, found in answers if name in found]
        rows.append(
            {
                "ghosts": len(credited),
                "seconds": round(max(credited, default=0.0), 2),
                "ghosts_after_one_lease": sum(since > keyspace.LEASE_S for since in credited),
            }
        )
    await index.close()
    return rows


async def restarts(server: RedisServer, trials: int, num_ranks: int, num_blocks: int) -> list[dict[str, Any]]:
    """Each trial: what lookups said until all ranks were credited with all again."""
    hashes = chain(num_blocks)
    whole = {f"rank{number}": num_blocks for number in range(num_ranks)}
    process = start_ranks(server.url, list(whole), num_blocks)
    index = PrefixIndex(open_client(server.url), CLUSTER, Breaker(SystemClock()))
    rows = []
    try:
        for _ in range(trials):
            await ask(index, hashes, time.monotonic(), lambda found: found == whole)
            await asyncio.to_thread(server.kill)
            begin = time.monotonic()
            await asyncio.to_thread(server.start)
            restarted = time.monotonic()
            answers = await ask(index, hashes, restarted, lambda found: found == whole)
            rows.append(
                {
                    "down_s": round(restarted - begin, 3),
                    "blind": sum(not answered for _, answered, _ in answers),
                    "empty": sum(answered and not found for _, answered, found in answers),
                    "partial": sum(bool(found) and found != whole for _, _, found in answers),
                    "first_credit_s": round(next(since for since, _, found in answers if found), 2),
                    "whole_s": round(answers[-1][0], 2),
                }
            )
    finally:
        process.kill()
        process.join()
        await index.close()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=keyspace.MOST_HOLDERS)
    parser.add_argument("--blocks", type=int, default=2048)
    parser.add_argument("--program", type=Path)
    args = parser.parse_args()
    program = args.program or find_server()
    with tempfile.TemporaryDirectory() as directory, RedisServer(program, Path(directory)) as server:
        report = {
            "server": program.name,
            "lease_s": keyspace.LEASE_S,
            "renew_s": keyspace.RENEW_INTERVAL_S,
            "lookup_budget_s": LOOKUP_BUDGET_S,
            "deaths": asyncio.run(deaths(server.url, args.trials, args.blocks)),
            "restarts": asyncio.run(restarts(server, args.trials, args.ranks, args.blocks)),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
