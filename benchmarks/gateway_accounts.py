"""What accounts cost a gateway: CPU and time for each request that is opened and settled, with one process or several.

usage: python -m benchmarks.gateway_accounts [--requests N] [--at-once N] [--gateways N] [--directory DIR]

JSON on stdout. Every request has a key with all limits; half of the wall time is the disk's, so say which disk it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from baleen.accounts_config import PriceConfig
from baleen.clock import SystemClock
from baleen.telemetry import Log
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.money import PICO, PriceList, Usage
from router.gateway.accounts.records import Key
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore

PRICES = PriceList([PriceConfig(model="m", input_hit="0.028", input_miss="0.28", output="0.42")])


async def _serve(path: Path, secret: str, number: int, num_requests: int, at_once: int) -> dict[str, float]:
    accounts = Accounts(path, PRICES, clock=SystemClock(), log=Log("off"))
    await accounts.start()
    waits_s: list[float] = []

    async def worker(place: int) -> None:
        for turn in range(num_requests // at_once):
            start_s = time.perf_counter()
            key = await accounts.authenticate([secret])
            await accounts.count_call(key)
            charge = await accounts.open(
                key,
                request_id=f"{number}-{place}-{turn}",
                model="m",
                served_as="m",
                prompt_tokens=100,
                output_tokens=100,
            )
            waits_s.append(time.perf_counter() - start_s)
            charge.settle(Usage(50, 50, 80, 10), "finished")

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(place) for place in range(at_once)))
    await accounts.balance(key=(await accounts.authenticate([secret])))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    num_done = len(waits_s)
    await accounts.close()
    hundredths = quantiles(waits_s, n=100)
    return {
        "requests": num_done,
        "requests_per_s": num_done / wall_s,
        "cpu_us_per_request": 1e6 * cpu_s / num_done,
        "admission_median_ms": 1e3 * hundredths[49],
        "admission_p99_ms": 1e3 * hundredths[98],
    }


def _gateway(path: Path, secret: str, number: int, num_requests: int, at_once: int) -> dict[str, float]:
    return asyncio.run(_serve(path, secret, number, num_requests, at_once))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_accounts")
    parser.add_argument("--requests", type=int, default=2000, help="of each gateway (2000)")
    parser.add_argument("--at-once", type=int, default=16, help="requests at the same time in each gateway (16)")
    parser.add_argument("--gateways", type=int, default=1, help="processes on one file (1)")
    parser.add_argument("--directory", type=Path, help="where the file lies (a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        path = Path(folder) / "accounts.db"
        secret = new_secret()
        key = Key(
            key_id=key_id(secret) or "",
            digest=digest(secret),
            tenant="t",
            requests_per_minute=10**9,
            tokens_per_minute=10**9,
            concurrency=10**6,
            has_balance=True,
        )
        store = SqliteStore(path)
        store.add_key(key, balance=1000 * PICO)
        store.close()
        with multiprocessing.get_context("spawn").Pool(options.gateways) as pool:
            results = pool.starmap(
                _gateway,
                [(path, secret, number, options.requests, options.at_once) for number in range(options.gateways)],
            )
    print(json.dumps({"cpus": os.cpu_count(), "at_once": options.at_once, "gateways": results}, indent=2))


if __name__ == "__main__":
    main()
