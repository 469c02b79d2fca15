"""What the gateway costs beside calling its router directly, in one run, and whether it holds many streams in flat
memory: prints one JSON object.

usage: python -m benchmarks.gateway_overhead [--requests 400] [--tokens 128] [--concurrency 16] [--gap-ms 20]
           [--rounds 3] [--ranks 1] [--held 1000] [--held-s 60] [--resumable]
           [--resume-mib 256]

The router here is a server that was given its answers beforehand. Its requests are shared out among --ranks, each of
which has a token every --gap-ms for all of its own at the same time, as busy ranks have. `gateway` is a whole gateway
(uvloop, keys, ledger) in a process of its own, called over HTTP; `many` and `direct` are processes that make the same
calls of that router by gRPC themselves, all on one stream as the gateway does, and each as a call of its own; `socket`
is one that only writes frames of the same size at the same pace to as many connections, so that the sum of `many` and
`socket` is what a gateway that does nothing but pass tokens on would take. CPU is that of the process in question
alone, user and system: per token by the difference between requests of 1 token and of --tokens, per request what is
left. Rounds of all take turns.

held: so many streams at the same time, each with a token a second; resident memory of the gateway over that time, once
all of them have begun. --resumable: the streams are such that a client may come back to; --resume-mib: what all of them
keep at most, as in the cluster file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from baleen.accounts_config import KeysConfig, PriceConfig
from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from benchmarks.paced_router import router_process
from router.gateway.config import GatewayProcessConfig
from router.gateway.line import Line
from router.gateway.main import Gateway
from tests.support.gateway_server import add_key
from tests.support.tiny_tokenizer import tiny_tokenizer

PRICES = (PriceConfig(model="baleen", input_hit="0.028", input_miss="0.28", output="0.42"),)
PROMPT = "the thing " * 40
DEADLINE_S = 600.0
FRAME = b"f" * 276 + b"\r\n"
"""As long as a token's piece of a chat is on the wire."""

Round = Callable[[int, int, int], Awaitable[None]]
"""Makes so many requests, so many at a time, of so many tokens."""


async def _answer(pipe: Connection, do: Callable[[Any], Awaitable[Any]] | None = None) -> None:
    """Tell CPU seconds when asked, do what is asked, until told to end."""
    while (asked := await asyncio.to_thread(pipe.recv)) != "end":
        pipe.send(time.process_time() if asked == "cpu" else await do(asked) if do is not None else None)


def gateway_process(pipe: Connection, folder: str, router: str, resume_mib: int) -> None:
    """A gateway with keys and a ledger, as `baleen up` runs it."""

    async def serve() -> None:
        config = GatewayProcessConfig(
            listen="127.0.0.1:0",
            routers=(router,),
            model=folder,
            model_name="baleen",
            accounts=f"{folder}/accounts.db",
            settings=GatewayConfig(keys=KeysConfig(mode="required"), prices=PRICES, resume_mib=resume_mib),
            drain_timeout_s=1.0,
        )
        gateway = Gateway(config, log=Log("info", write=lambda line: None))
        pipe.send(await gateway.start())
        await _answer(pipe)
        await gateway.stop()

    uvloop.run(serve())


def caller_process(pipe: Connection, router: str, prompt: list[int], is_many: bool) -> None:
    """A caller of the router: what is asked is (requests, concurrency, tokens, gap)."""

    async def serve() -> None:
        channel = open_channel(router)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        line = Line(stub)

        async def alone(request: inference_pb2.GenerateRequest) -> None:
            text = []
            async for message in stub.Generate(request, timeout=DEADLINE_S):
                text.append(message.delta.text)

        async def with_others(request: inference_pb2.GenerateRequest) -> None:
            text = []
            strand = line.start(request, tenant="", traceparent="", deadline_s=DEADLINE_S)
            while deltas := await strand.deltas():
                text += [delta.text for delta in deltas]

        async def do(asked: Any) -> None:
            requests, concurrency, tokens, gap_ms = asked
            request = inference_pb2.GenerateRequest(
                token_ids=inference_pb2.TokenIds(ids=prompt),
                sampling=common_pb2.SamplingParams(max_tokens=tokens, top_k=gap_ms),
            )
            await at_once(lambda: (with_others if is_many else alone)(request), requests, concurrency)

        pipe.send("ready")
        await _answer(pipe, do)
        await line.close()
        await channel.close(None)

    uvloop.run(serve())


class _Frames(asyncio.Protocol):
    """A connection that is sent frames: it says how many, and with which gap in ms."""

    def connection_made(self, transport: Any) -> None:
        """It begins."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """What it wants."""
        count, gap_ms = map(int, data.split())
        self._send(count, gap_ms / 1e3)

    def _send(self, left: int, gap_s: float) -> None:
        self._transport.write(FRAME if left else b"end\n")
        if left:
            asyncio.get_running_loop().call_later(gap_s, self._send, left - 1, gap_s)


def socket_process(pipe: Connection) -> None:
    """A server that writes frames and does nothing else."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Frames, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await _answer(pipe)

    uvloop.run(serve())


async def at_once(once: Callable[[], Awaitable[None]], requests: int, concurrency: int) -> None:
    """Run `requests` of them, `concurrency` at a time."""
    numbers = iter(range(requests))

    async def worker() -> None:
        for _ in numbers:
            await once()

    await asyncio.gather(*(worker() for _ in range(concurrency)))


class Http:
    """Streams chats from the gateway, on a connection for each worker."""

    def __init__(self, address: str, key: str, *, resumable: bool) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._key = key
        self._resumable = resumable
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def _request(self, tokens: int, gap_ms: int) -> bytes:
        body = {
            "model": "baleen",
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": True,
            "max_tokens": tokens,
            "top_k": gap_ms,
            **({"resumable": True} if self._resumable else {}),
        }
        raw = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        return head.encode() + raw

    async def once(self, tokens: int, gap_ms: int, begun: Callable[[], None] = lambda: None) -> None:
        """One stream to its end; begun: called at its first token."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        writer.write(self._request(tokens, gap_ms))
        try:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"data: ")
            begun()
            last = b""
            while not (last + (read := await reader.read(1 << 16))).endswith(b"\r\n0\r\n\r\n"):
                last = read[-8:]
        except asyncio.CancelledError:
            writer.close()
            raise
        self._idle.append((reader, writer))


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 1)


async def held(http: Http, pid: int, *, streams: int, seconds: int) -> dict[str, Any]:
    """Hold so many streams; memory once a second."""
    before = resident_mib(pid)
    num_begun = 0
    everybody = asyncio.Event()

    def begun() -> None:
        nonlocal num_begun
        num_begun += 1
        if num_begun == streams:
            everybody.set()

    start = time.perf_counter()
    tasks = [asyncio.create_task(http.once(60_000, 1000, begun)) for _ in range(streams)]
    async with asyncio.timeout(300):
        await everybody.wait()
    all_begun_s = time.perf_counter() - start
    samples = []
    for _ in range(seconds):
        samples.append(resident_mib(pid))
        await asyncio.sleep(1.0)
    unfinished = sum(not task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(5.0)
    return {
        "streams": streams,
        "all_begun_s": round(all_begun_s, 1),
        "still_running_at_the_end": unfinished,
        "resident_mib_before": before,
        "resident_mib_by_tenths_of_the_time": samples[:: max(1, len(samples) // 10)],
        "resident_mib_last": samples[-1],
        "resident_mib_after": resident_mib(pid),
    }


async def measure(
    options: argparse.Namespace,
    http: Http,
    gateway: Connection,
    callers: Mapping[str, Connection],
    frames: Connection,
    pid: int,
) -> Any:
    """All cells."""
    port = frames.recv()

    async def ask(pipe: Connection, what: Any) -> Any:
        pipe.send(what)
        return await asyncio.to_thread(pipe.recv)

    async def through_gateway(requests: int, concurrency: int, tokens: int) -> None:
        await at_once(lambda: http.once(tokens, options.gap_ms), requests, concurrency)

    def calling(pipe: Connection) -> Round:
        async def call(requests: int, concurrency: int, tokens: int) -> None:
            await ask(pipe, (requests, concurrency, tokens, options.gap_ms))

        return call

    async def framed(requests: int, concurrency: int, tokens: int) -> None:
        async def once() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
            writer.write(f"{tokens} {options.gap_ms}".encode())
            await reader.readuntil(b"end\n")
            writer.close()

        await at_once(once, requests, concurrency)

    ways: dict[str, tuple[Connection, Round]] = {
        "gateway": (gateway, through_gateway),
        **{name: (pipe, calling(pipe)) for name, pipe in callers.items()},
        "socket": (frames, framed),
    }
    for _, way in ways.values():
        await way(2 * options.concurrency, options.concurrency, 4)
    used: dict[str, dict[int, list[float]]] = {name: {1: [], options.tokens: []} for name in ways}
    for _ in range(options.rounds):
        for tokens in (1, options.tokens):
            for name, (pipe, way) in ways.items():
                before = await ask(pipe, "cpu")
                await way(options.requests, options.concurrency, tokens)
                used[name][tokens].append(1e6 * (await ask(pipe, "cpu") - before) / options.requests)
    cells: dict[str, Any] = {}
    for name in ways:
        short, long = (statistics.median(used[name][tokens]) for tokens in (1, options.tokens))
        per_token = (long - short) / (options.tokens - 1)
        cells[name] = {
            "cpu_us_per_request": round(short - per_token, 1),
            "cpu_us_per_token": round(per_token, 2),
            "rounds_us_per_token": [
                round((many - one) / (options.tokens - 1), 2)
                for one, many in zip(used[name][1], used[name][options.tokens], strict=True)
            ],
        }
    if options.held:
        cells["held"] = await held(http, pid, streams=options.held, seconds=options.held_s)
    return cells


def main() -> None:
    """Start the processes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--gap-ms", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--held", type=int, default=1000)
    parser.add_argument("--held-s", type=int, default=60)
    parser.add_argument("--resumable", action="store_true")
    parser.add_argument("--resume-mib", type=int, default=256)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer()
        tokenizer.save(f"{folder}/tokenizer.json")
        key = add_key(Path(folder) / "accounts.db", balance=10**15)
        pipes, processes = [], []

        def start(target: Callable[..., None], *args: Any) -> Connection:
            here, there = context.Pipe()
            process = context.Process(target=target, args=(there, *args), daemon=True)
            process.start()
            pipes.append(here)
            processes.append(process)
            return here

        router_address = start(router_process, tokenizer.encode("the").ids[:1], options.ranks).recv()
        gateway = start(gateway_process, folder, router_address, options.resume_mib)
        http = Http(gateway.recv(), key, resumable=options.resumable)
        prompt = tokenizer.encode(PROMPT).ids
        callers = {name: start(caller_process, router_address, prompt, name == "many") for name in ("many", "direct")}
        for caller in callers.values():
            caller.recv()
        frames = start(socket_process)
        cells = uvloop.run(measure(options, http, gateway, callers, frames, processes[1].pid or 0))
        for pipe, process in zip(reversed(pipes), reversed(processes), strict=True):
            pipe.send("end")
            process.join(10)
    shape = {"requests": options.requests, "tokens": options.tokens, "concurrency": options.concurrency}
    shape |= {"gap_ms": options.gap_ms, "ranks": options.ranks, "resumable": options.resumable}
    print(json.dumps({**shape, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0], **cells}, indent=2))


if __name__ == "__main__":
    main()
