"""What a router adds to calling a rank directly: prints one JSON object.

    python -m benchmarks.router_overhead [--requests 200] [--prompt 192] [--tokens 128] [--concurrency 1,16]
        [--step-ms 0] [--rates 50,200,1000] [--paced-s 5]

The rank is a FakeRank in a process of its own, the router (uvloop, as `baleen up` runs it) in another, the client here;
all over gRPC on loopback. `router` is a client that makes a call for each request, `many` one that has all of them on
one stream, as a gateway does; `direct` one that keeps a session to the rank, as a router does. --step-ms: between two
steps of the rank, each of which has a token for every request; 0: as fast as it can. Times are seen by the client.
added_ms: difference of the medians of `router` and `direct`. CPU is that of the router process alone, user and system;
per request and per token by the difference between requests of 1 token and of --tokens.

paced: requests of 1 token are sent at moments fixed beforehand, --rates of them a second, whatever became of those
before; times are from the intended moment to the first token. late: the client itself was late by so much, at the p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from baleen.clock import SystemClock
from baleen.ids import RequestId
from baleen.reports import RequestOutput
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from router.config import RouterProcessConfig
from router.gateway.line import Line
from router.main import Router
from router.members import Members
from router.messages import Mailbox, RankSubmission
from router.session import RankSession
from router.sessions import RankSessions
from tests.support.fake_rank import FakeRank

LONG_S = 600.0

Once = Callable[[list[int], int], Awaitable[tuple[float, float]]]
"""Sends one prompt; seconds to the first token and to the end."""


def rank_process(pipe: Connection, step_s: float) -> None:
    """A fake rank until the pipe says something."""

    async def serve() -> None:
        async with FakeRank() as rank:
            rank.free_blocks = rank.info.num_blocks = 1 << 20
            rank.info.max_running = 1 << 20
            rank.token_delay_s = step_s
            pipe.send(rank.info.address)
            await asyncio.to_thread(pipe.recv)

    asyncio.run(serve())


def router_process(pipe: Connection, address: str) -> None:
    """A router that tells its CPU seconds when asked, until it is told to end."""

    async def serve() -> None:
        router = Router(RouterProcessConfig(listen="127.0.0.1:0", ranks=address), log=Log("off"))
        pipe.send(await router.start())
        while await asyncio.to_thread(pipe.recv) == "cpu":
            pipe.send(time.process_time())
        await router.stop(0.0)

    uvloop.run(serve())


def through_router(stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> Once:
    """Requests as calls of the router."""

    async def once(prompt: list[int], max_tokens: int) -> tuple[float, float]:
        message = _request(prompt, max_tokens)
        begin, first = time.perf_counter(), 0.0
        async for response in stub.Generate(message):
            if not first and response.WhichOneof("event") == "delta":
                first = time.perf_counter()
        return first - begin, time.perf_counter() - begin

    return once


def on_one_stream(line: Line) -> Once:
    """Requests as a gateway makes them."""

    async def once(prompt: list[int], max_tokens: int) -> tuple[float, float]:
        begin, first = time.perf_counter(), 0.0
        strand = line.start(_request(prompt, max_tokens), tenant="", traceparent="", deadline_s=LONG_S)
        while await strand.deltas():
            first = first or time.perf_counter()
        return first - begin, time.perf_counter() - begin

    return once


def _request(prompt: list[int], max_tokens: int) -> inference_pb2.GenerateRequest:
    sampling = common_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0)
    token_ids = inference_pb2.TokenIds(ids=prompt)
    return inference_pb2.GenerateRequest(token_ids=token_ids, sampling=sampling, omit_text=True)


def to_rank(session: RankSession) -> Once:
    """Requests straight to the rank, over one session."""
    clock = SystemClock()
    count = 0

    async def once(prompt: list[int], max_tokens: int) -> tuple[float, float]:
        nonlocal count
        count += 1
        request_id, mailbox, first = RequestId(f"direct-{count}"), Mailbox(), 0.0
        begin = time.perf_counter()
        session.submit(
            RankSubmission(
                request_id=request_id,
                token_ids=tuple(prompt),
                sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0),
                deadline=clock.now() + LONG_S,
            ),
            mailbox,
        )
        while True:
            event = await mailbox.get()
            assert isinstance(event, RequestOutput), event
            first = first or time.perf_counter()
            if event.finish is not None:
                session.forget(request_id)
                return first - begin, time.perf_counter() - begin

    return once


async def load(once: Once, *, requests: int, prompt_tokens: int, max_tokens: int, concurrency: int) -> dict[str, float]:
    """Run `requests` requests, `concurrency` at a time."""
    numbers = iter(range(requests))
    first, total = [], []

    async def worker() -> None:
        for number in numbers:
            prompt = [2 + (number * 31 + place) % 280 for place in range(prompt_tokens)]
            first_s, total_s = await once(prompt, max_tokens)
            first.append(1e3 * first_s)
            total.append(1e3 * total_s)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    seconds = time.perf_counter() - begin
    return {
        "requests_per_s": round(requests / seconds, 1),
        "first_token_ms_p50": round(statistics.median(first), 3),
        "first_token_ms_p99": round(statistics.quantiles(first, n=100)[98], 3),
        "total_ms_p50": round(statistics.median(total), 3),
    }


async def paced(once: Once, *, rate: float, seconds: float, prompt_tokens: int) -> dict[str, float]:
    """An open loop: `rate` requests a second."""
    prompt = [2 + place % 280 for place in range(prompt_tokens)]
    begin = time.perf_counter() + 0.1
    late: list[float] = []

    async def one(intended: float) -> float:
        late.append(time.perf_counter() - intended)
        sent = time.perf_counter()
        first_s, _ = await once(prompt, 1)
        return 1e3 * (sent + first_s - intended)

    tasks = []
    for number in range(round(rate * seconds)):
        intended = begin + number / rate
        if (pause := intended - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(one(intended)))
    sending_s = time.perf_counter() - begin
    times = await asyncio.gather(*tasks)
    cuts = statistics.quantiles(times, n=100)
    return {
        "sent_per_s": round(len(times) / sending_s, 1),
        "answered_per_s": round(len(times) / (time.perf_counter() - begin), 1),
        "first_token_ms_p50": round(cuts[49], 3),
        "first_token_ms_p99": round(cuts[98], 3),
        "late_ms_p99": round(1e3 * statistics.quantiles(late, n=100)[98], 3),
    }


async def measure(options: argparse.Namespace, rank: str, router: str, pipe: Connection) -> dict[str, Any]:
    """All cells, router and direct in turn."""

    def cpu() -> float:
        pipe.send("cpu")
        seconds: float = pipe.recv()
        return seconds

    sessions = RankSessions(Members(), SystemClock(), Log("off"))
    sessions.connect([rank])
    while not sessions.open:
        await sessions.change(0.1)
    (session,) = sessions.open.values()
    channel = open_channel(router)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    line = Line(stub)
    ways = {"router": through_router(stub), "many": on_one_stream(line), "direct": to_rank(session)}
    cells: dict[str, Any] = {}
    for concurrency in map(int, options.concurrency.split(",")):
        shape = {"requests": options.requests, "prompt_tokens": options.prompt, "concurrency": concurrency}
        cell: dict[str, Any] = {}
        used: dict[tuple[str, int], float] = {}
        for max_tokens in (1, options.tokens):
            for name, once in ways.items():
                warm = {**shape, "requests": max(concurrency, 10)}
                await load(once, max_tokens=max_tokens, **warm)
                before = cpu()
                cell[f"{name}_{max_tokens}"] = await load(once, max_tokens=max_tokens, **shape)
                used[name, max_tokens] = (cpu() - before) / options.requests
            added = (
                cell[f"router_{max_tokens}"]["first_token_ms_p50"] - cell[f"direct_{max_tokens}"]["first_token_ms_p50"]
            )
            cell[f"added_first_token_ms_{max_tokens}"] = round(added, 3)
        for name in ("router", "many"):
            per_token = (used[name, options.tokens] - used[name, 1]) / (options.tokens - 1)
            cell[f"{name}_cpu_us_per_token"] = round(1e6 * per_token, 1)
            cell[f"{name}_cpu_us_per_request"] = round(1e6 * (used[name, 1] - per_token), 1)
        cells[f"concurrency_{concurrency}"] = cell
    for rate in map(float, filter(None, options.rates.split(","))):
        cell = {}
        for name, once in ways.items():
            before, begin = cpu(), time.perf_counter()
            cell[name] = await paced(once, rate=rate, seconds=options.paced_s, prompt_tokens=options.prompt)
            if name != "direct":
                used_s = cpu() - before
                cell[f"{name}_cpu_us_per_request"] = round(1e6 * used_s / round(rate * options.paced_s), 1)
                cell[f"{name}_cpu_share"] = round(used_s / (time.perf_counter() - begin), 3)
        for cut in ("p50", "p99"):
            times = [cell[name][f"first_token_ms_{cut}"] for name in ("router", "direct")]
            cell[f"added_ms_{cut}"] = round(times[0] - times[1], 3)
        cells[f"paced_{rate:g}_per_s"] = cell
    await line.close()
    await channel.close(None)
    await sessions.close()
    return cells


def main() -> None:
    """Start the processes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--concurrency", default="1,16")
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--rates", default="50,200,1000")
    parser.add_argument("--paced-s", type=float, default=5.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rank_pipe, rank_end = context.Pipe()
    router_pipe, router_end = context.Pipe()
    rank = context.Process(target=rank_process, args=(rank_end, options.step_ms / 1e3), daemon=True)
    rank.start()
    rank_address = rank_pipe.recv()
    router = context.Process(target=router_process, args=(router_end, rank_address), daemon=True)
    router.start()
    cells = uvloop.run(measure(options, rank_address, router_pipe.recv(), router_pipe))
    router_pipe.send("end")
    rank_pipe.send("end")
    router.join(10)
    rank.join(10)
    shape = {"requests": options.requests, "prompt": options.prompt, "tokens": options.tokens}
    print(json.dumps({**shape, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0], **cells}, indent=2))


if __name__ == "__main__":
    main()
