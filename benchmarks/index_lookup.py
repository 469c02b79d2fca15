"""What the prefix index costs: a lookup at 1, 100 and 2,048 blocks, memory per million blocks, announcing.

usage: python -m benchmarks.index_lookup [--blocks 1000000] [--lookups 1000] [--program FILE | --url URL]

Against an embedded server, of that program, or the one at URL, whose data it flushes. Lookups are of a chain in a full
index, through the router's own client on one event loop, one after the other: of one that one rank holds whole; of one
of 2,048 blocks, and its beginnings, that 16 ranks hold to 128, 256, ... 2,048 blocks; of one that nobody holds.
processor_us: of this process, per lookup. server_us: of the server in the script, by its own figures. while_announcing:
the longest lookup again while another process announces without a pause. hashing_us: naming the blocks of the prompt,
which comes before and needs no Redis. in_parallel_per_s: 16 lookups at a time. Memory is Redis's own figure before and
after the blocks are announced, each held by one rank, reverse index included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import secrets
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from baleen import keyspace
from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, root_hash
from baleen.clock import SystemClock
from baleen.ids import Epoch, Incarnation
from baleen.reports import RankInfo
from cluster.embedded import EmbeddedRedis
from router.breaker import Breaker
from router.index import PrefixIndex, open_client
from workers.cache import announce

CLUSTER = "benchmark"
PREFIX = keyspace.key_prefix(CLUSTER)
LENGTHS = (1, 100, 2048)
HOLDERS = keyspace.MOST_HOLDERS
BUDGET_S = 5.0
LIFE_MS = 3_600_000


class Holder:
    """A rank that announces blocks, call by call."""

    def __init__(self, client: redis.Redis, number: int) -> None:
        self._client = client
        self._tag = secrets.token_bytes(keyspace.TAG_BYTES)
        self._serial = 0
        self._name = f"rank{number:012}"
        info = RankInfo(
            incarnation=Incarnation(self._name),
            epoch=Epoch("0" * 16),
            rank=number,
            world_size=1,
            role="decode",
            pool="decode",
            group="decode-0",
            address="127.0.0.1:50051",
            model_fingerprint="0" * 32,
            vocab_size=129_280,
            max_context=131_072,
            eos_token_ids=(1,),
            num_blocks=100_000,
            max_running=64,
            pid=1,
        )
        self._call(keyspace.REGISTER, self._tag, b"", self._name, keyspace.encode_info(info), LIFE_MS, LIFE_MS)

    def announce(self, hashes: Sequence[BlockHash]) -> None:
        """Tell all of them, in batches."""
        for start in range(0, len(hashes), keyspace.BATCH_BLOCKS):
            batch = keyspace.pack_hashes(hashes[start : start + keyspace.BATCH_BLOCKS])
            self._serial += 1
            assert self._call(keyspace.ANNOUNCE, self._tag, self._name, self._serial, LIFE_MS, batch, b"")

    def _call(self, script: keyspace.Script, *arguments: bytes | str | int) -> Any:
        return self._client.eval(script.source, 1, PREFIX, *arguments)


def prompt(num_blocks: int, first_token: int) -> list[int]:
    """Token ids of a prompt; another first token gives other hashes throughout."""
    return [first_token, *range(num_blocks * BLOCK_TOKENS - 1)]


def chain(num_blocks: int, first_token: int) -> list[BlockHash]:
    """Hashes of such a prompt."""
    return chain_hashes(root_hash(b"model", b"tenant"), prompt(num_blocks, first_token))


def fill(client: redis.Redis, num_blocks: int) -> dict[str, Any]:
    """Announce that many blocks, 1,000 by each rank in prompts of 100 blocks; memory and speed."""
    batches = [
        [block_hash for place in range(10) for block_hash in chain(100, 1000 + 10 * number + place)]
        for number in range(num_blocks // 1000)
    ]
    before = used_memory(client)
    begin = time.perf_counter()
    for number, hashes in enumerate(batches):
        Holder(client, number).announce(hashes)
    seconds = time.perf_counter() - begin
    per_block = (used_memory(client) - before) / num_blocks
    return {
        "blocks": num_blocks,
        "bytes_per_block": round(per_block, 1),
        "mib_per_million_blocks": round(per_block * 1e6 / 2**20),
        "announced_blocks_per_s": round(num_blocks / seconds),
    }


def used_memory(client: redis.Redis) -> int:
    """Bytes that the server has allocated."""
    memory: Any = client.info("memory")
    return int(memory["used_memory"])


async def lookups(url: str, count: int, client: redis.Redis) -> dict[str, Any]:
    """Latency of every kind of lookup."""
    index = PrefixIndex(open_client(url), CLUSTER, Breaker(SystemClock()), budget_s=BUDGET_S)
    rows = []
    try:
        for length in LENGTHS:
            for first_token, holders in ((1, 1), (2, HOLDERS), (3, 0)):
                hashes = chain(length, first_token)
                found = await index.prefixes(hashes)
                assert len(found) == holders, found
                client.config_resetstat()
                row = {"blocks": length, "holders": holders, **await times(index, hashes, count)}
                statistics_of: Any = client.info("commandstats")
                rows.append(row | {"server_us": round(statistics_of["cmdstat_evalsha"]["usec_per_call"])})
        with announcing(url):
            busy = await times(index, chain(max(LENGTHS), 2), count)
        assert index.counts.failures == 0, index.counts.last_failure
    finally:
        await index.close()
    return {"lookups": rows, "while_announcing": {"blocks": max(LENGTHS), "holders": HOLDERS, **busy}}


@contextlib.contextmanager
def announcing(url: str) -> Iterator[None]:
    """A rank in a process of its own announces 10,000 blocks over and over, as after Redis came back empty."""
    process = multiprocessing.get_context("spawn").Process(target=announce_on, args=(url,), daemon=True)
    process.start()
    try:
        with announce.open_client(url) as client:
            while not client.mget(PREFIX + b"b" + chain(1, 4)[0])[0]:
                time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.join()


def announce_on(url: str) -> None:
    """Until killed."""
    hashes = chain(10_000, 4)
    with announce.open_client(url) as client:
        holder = Holder(client, 20_000_000)
        while True:
            holder.announce(hashes)


async def times(index: PrefixIndex, hashes: Sequence[BlockHash], count: int) -> dict[str, Any]:
    """One lookup after the other, then 16 at a time."""
    latencies = []
    processor = time.process_time()
    for _ in range(count):
        begin = time.perf_counter()
        await index.prefixes(hashes)
        latencies.append(1e3 * (time.perf_counter() - begin))
    processor_us = 1e6 * (time.process_time() - processor) / count
    begin = time.perf_counter()
    for _ in range(count // 16):
        await asyncio.gather(*(index.prefixes(hashes) for _ in range(16)))
    parallel_s = time.perf_counter() - begin
    ordered = sorted(latencies)
    return {
        "median_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(ordered[min(count - 1, round(0.99 * count))], 3),
        "processor_us": round(processor_us),
        "in_parallel_per_s": round(count // 16 * 16 / parallel_s),
    }


def hashing(count: int) -> list[dict[str, Any]]:
    """Microseconds to name the blocks of a prompt."""
    rows = []
    for length in LENGTHS:
        tokens, root = prompt(length, 1), root_hash(b"model", b"tenant")
        rounds = max(5, count // length)
        begin = time.perf_counter()
        for _ in range(rounds):
            chain_hashes(root, tokens)
        rows.append({"blocks": length, "hashing_us": round(1e6 * (time.perf_counter() - begin) / rounds, 1)})
    return rows


def measure(url: str, num_blocks: int, count: int) -> dict[str, Any]:
    """Everything, on one server."""
    with announce.open_client(url, socket_timeout_s=60.0) as client:
        client.flushall()
        server: Any = client.info("server")
        report: dict[str, Any] = {
            "server": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
            "memory": fill(client, num_blocks),
        }
        Holder(client, 10_000_000).announce(chain(max(LENGTHS), 1))
        shared = chain(max(LENGTHS), 2)
        for number in range(HOLDERS):
            Holder(client, 10_000_001 + number).announce(shared[: len(shared) * (number + 1) // HOLDERS])
        report |= asyncio.run(lookups(url, count, client))
    report["hashing"] = hashing(count)
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=1000)
    parser.add_argument("--program", type=Path)
    parser.add_argument("--url", default="")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(EmbeddedRedis(max_memory_mib=2048, program=args.program)).url
        print(json.dumps(measure(url, args.blocks, args.lookups), indent=1))


if __name__ == "__main__":
    main()
