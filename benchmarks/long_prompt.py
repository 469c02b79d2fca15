"""A very long prompt through prefill rank, transfer and decode rank, beside streams that go on: prints one JSON object.

usage: python -m benchmarks.long_prompt [--tokens 100000] [--streams 4] [--quiet-s 10] [--chunk 256]

Real processes over loopback, without Ray: one prefill and one decode rank of one thread each, a router, a Redis; the
client is this process. The model has 2 layers, 2 heads, one index head of width 32 and index_topk 64, so that the
square of the prompt's length can be computed on a CPU. Gaps are those between the deltas of a stream, as the client
sees them, in milliseconds: before the long request is sent, until its first token, while it decodes, and after it; and,
as what the prefill rank's use of a processor alone costs on a machine of few, beside a process that only counts.
ratio: the p99 from the sending to the end over the p99 of before and after; ratio_to_busy: over that beside the
counting process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baleen.v1 import common_pb2, inference_pb2
from tests.support.router_client import Caller
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

MODEL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "qk_rope_head_dim": 16,
    "index_head_dim": 32,
    "index_n_heads": 1,
    "index_topk": 64,
    "kv_lora_rank": 32,
    "max_position_embeddings": 163_840,
}
STREAM_PROMPT = 200


def generate_request(prompt: list[int], max_tokens: int) -> inference_pb2.GenerateRequest:
    """Greedy, ended by its length only, without text."""
    message = inference_pb2.GenerateRequest(
        sampling=common_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True), omit_text=True
    )
    message.token_ids.ids.extend(prompt)
    return message


@dataclass(eq=False)
class Stream:
    """One stream: when each delta came."""

    arrivals: list[float] = field(default_factory=list)

    async def run(self, client: Caller, request: inference_pb2.GenerateRequest) -> None:
        """Read it to its end."""
        async for message in client.call(request):
            if message.WhichOneof("event") == "delta":
                self.arrivals.append(time.perf_counter())


def gaps_within(streams: list[Stream], begin: float, end: float) -> dict[str, float]:
    """Of all streams, gaps that end between two moments."""
    gaps = [
        1e3 * (later - sooner)
        for stream in streams
        for sooner, later in zip(stream.arrivals, stream.arrivals[1:], strict=False)
        if begin <= later < end
    ]
    cuts = statistics.quantiles(gaps, n=100)
    return {
        "count": len(gaps),
        "p50": round(cuts[49], 2),
        "p90": round(cuts[89], 2),
        "p99": round(cuts[98], 2),
        "max": round(max(gaps), 2),
    }


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A process that uses one processor, for the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def measure(client: Caller, args: argparse.Namespace) -> dict[str, Any]:
    """Streams, then the long request beside them."""
    prompt = [2 + place * 7919 % 250 for place in range(args.tokens)]
    request = generate_request(prompt, args.output)
    request.request_id = "long"
    streams = [Stream() for _ in range(args.streams)]
    tasks = [
        asyncio.create_task(stream.run(client, generate_request([5 + number] * STREAM_PROMPT, args.stream_tokens)))
        for number, stream in enumerate(streams)
    ]
    while not all(len(stream.arrivals) > 20 for stream in streams):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    busy_from = time.perf_counter()
    with busy_process():
        await asyncio.sleep(args.quiet_s)
    begin = time.perf_counter()
    await asyncio.sleep(args.quiet_s)
    long = Stream()
    sent = time.perf_counter()
    await long.run(client, request)
    ended = time.perf_counter()
    await asyncio.sleep(args.quiet_s)
    done = time.perf_counter()
    assert not any(task.done() for task in tasks), "a stream ended too soon: raise --stream-tokens"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    explained = await client.explain("long")
    busy = gaps_within(streams, busy_from, begin)
    quiet = [gaps_within(streams, begin, sent), gaps_within(streams, ended, done)]
    during = gaps_within(streams, sent, ended)
    return {
        "first_token_s": round(long.arrivals[0] - sent, 2),
        "phases": [(round(one.at_s, 3), one.event) for one in explained.milestones],
        "outcome": explained.outcome,
        "beside_a_busy_process": busy,
        "before": quiet[0],
        "until_first_token": gaps_within(streams, sent, long.arrivals[0]),
        "while_it_decodes": gaps_within(streams, long.arrivals[0], ended),
        "after": quiet[1],
        "ratio_p99": round(during["p99"] / statistics.mean(one["p99"] for one in quiet), 2),
        "ratio_p99_to_busy": round(during["p99"] / busy["p99"], 2),
        "ratio_p50": round(during["p50"] / statistics.mean(one["p50"] for one in quiet), 2),
    }


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--output", type=int, default=32, help="tokens that the long request generates")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--stream-tokens", type=int, default=60_000)
    parser.add_argument("--quiet-s", type=float, default=10.0)
    parser.add_argument("--chunk", type=int, default=256, help="engine.max_chunk_tokens of both ranks")
    args = parser.parse_args()
    begin_load = os.getloadavg()[0]
    num_blocks = (args.tokens + args.streams * (args.stream_tokens + STREAM_PROMPT)) // 64 + 64
    with tempfile.TemporaryDirectory(prefix="baleen-bench-") as folder:
        directory = Path(folder)
        with small_cluster(
            make_tiny(directory / "model", **MODEL),
            directory,
            roles=["prefill", "decode"],
            routers=[{"log_level": "info"}],
            cache={"num_blocks": num_blocks},
            engine={"max_chunk_tokens": args.chunk, "max_batch_tokens": args.chunk + 64},
        ) as cluster:

            async def run() -> dict[str, Any]:
                async with cluster.client() as client:
                    return await measure(client, args)

            result = asyncio.run(run())
    shape = {"tokens": args.tokens, "streams": args.streams, "chunk": args.chunk, "cpus": os.cpu_count()}
    print(json.dumps({**shape, "load_average": [begin_load, os.getloadavg()[0]], **result}, indent=1))


if __name__ == "__main__":
    main()
