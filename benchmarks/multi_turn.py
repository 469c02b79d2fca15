"""Hit rate and time to first token of routing policies on conversations, through a real router and real ranks.

usage: python -m benchmarks.multi_turn [--conversations 8] [--turns 4] [--policies cost,round_robin]

Ranks of EP 1 over a tiny model, four mixed ones unless told otherwise, a Redis, and one router for each policy over the
same ranks; the client is this process. The policies take turns, on conversations that no other has
seen (each policy has a cache salt of its own): half of the conversations of one policy, of the next, and so on, then
the other half, in the reverse order. Conversations of a policy run at once, each turn repeating all that was said,
answers included, with a new question. hit_rate: prompt tokens that no rank had to compute for the request, as its
usage tells, of all. Times are the client's, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baleen.v1 import common_pb2, inference_pb2
from tests.support.router_client import Caller
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

ROLES = "mixed,mixed,mixed,mixed"


@dataclass(eq=False)
class Tally:
    """What the requests of one policy saw."""

    first_token_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    follow_up_ms: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Figures to print."""
        return {
            "requests": len(self.first_token_ms),
            "prompt_tokens": self.prompt_tokens,
            "hit_rate": round(self.cached_tokens / self.prompt_tokens, 3),
            "first_token_ms_p50": round(statistics.median(self.first_token_ms), 1),
            "first_token_ms_mean": round(statistics.mean(self.first_token_ms), 1),
            "first_token_ms_p90": round(statistics.quantiles(self.first_token_ms, n=10)[8], 1),
            "follow_up_first_token_ms_p50": round(statistics.median(self.follow_up_ms), 1),
        }


async def converse(client: Caller, tally: Tally, args: argparse.Namespace, policy: str, number: int) -> None:
    """One conversation, turn by turn."""
    chance = random.Random(number)
    said = [5 + place % 200 for place in range(args.system)]
    for turn in range(args.turns):
        said += [chance.randrange(2, 280) for _ in range(args.question)]
        request = inference_pb2.GenerateRequest(
            sampling=common_pb2.SamplingParams(max_tokens=args.answer, temperature=0.0, ignore_eos=True),
            omit_text=True,
            cache_salt=policy,
        )
        request.token_ids.ids.extend(said)
        begin, first = time.perf_counter(), 0.0
        async for message in client.call(request):
            if message.WhichOneof("event") != "delta":
                continue
            first = first or time.perf_counter()
            said += message.delta.token_ids
            if message.delta.finish_reason:
                usage = message.delta.usage
                tally.prompt_tokens += usage.prompt_tokens
                tally.cached_tokens += usage.cached_tokens
        tally.first_token_ms.append(1e3 * (first - begin))
        if turn:
            tally.follow_up_ms.append(tally.first_token_ms[-1])
        # a reader thinks; also the time in which ranks announce what they hold
        await asyncio.sleep(chance.uniform(0.5, 1.0) * args.think_s)


async def measure(clients: dict[str, Caller], args: argparse.Namespace) -> dict[str, Any]:
    """Both halves of every policy, in turns."""
    tallies = {policy: Tally() for policy in clients}
    for policy, client in clients.items():
        # connections and code paths warm
        await converse(client, Tally(), argparse.Namespace(**{**vars(args), "turns": 1}), f"warm {policy}", 999)
    half = args.conversations // 2
    order = list(clients.items())
    for numbers in (range(half), range(half, args.conversations)):
        for policy, client in order:
            await asyncio.gather(*(converse(client, tallies[policy], args, policy, number) for number in numbers))
        order.reverse()
    return {policy: tally.report() for policy, tally in tallies.items()}


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=8, help="of each policy")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--system", type=int, default=512, help="tokens that all conversations of a policy begin with")
    parser.add_argument("--question", type=int, default=300)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--think-s", type=float, default=1.0)
    parser.add_argument("--roles", default=ROLES, help="one rank of EP 1 for each")
    parser.add_argument("--policies", default="cost,least_loaded,round_robin")
    args = parser.parse_args()
    policies = args.policies.split(",")
    begin_load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="baleen-bench-") as folder:
        directory = Path(folder)
        with small_cluster(
            make_tiny(directory / "model", index_n_heads=1),
            directory,
            roles=args.roles.split(","),
            routers=[{"policy": policy} for policy in policies],
            cache={"num_blocks": 2048},
            engine={"max_chunk_tokens": 256, "max_batch_tokens": 512},
        ) as cluster:

            async def run() -> dict[str, Any]:
                async with AsyncExitStack() as stack:
                    clients = {
                        policy: await stack.enter_async_context(cluster.client(number))
                        for number, policy in enumerate(policies)
                    }
                    return await measure(clients, args)

            result = asyncio.run(run())
    print(json.dumps({"load_average": [begin_load, os.getloadavg()[0]], **vars(args), **result}, indent=1))


if __name__ == "__main__":
    main()
