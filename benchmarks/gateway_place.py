"""Where an HTTP server would run: a process of its own, behind Ray Serve's proxy, or behind Serve's HAProxy.

usage: python -m benchmarks.gateway_place [--requests 2000] [--streams 200] [--chunks 64] [--concurrency 16]
                                          [--rounds 2]

The same Starlette application in each place, in a network namespace; it answers at once, so that only the way is
measured. In every round each place has its turn. Prints one JSON object: for requests with a short answer, and for
streams of server-sent events, the rate, the latencies in milliseconds as the client sees them (for streams of the first
event), and the processor time of all processes of that place in microseconds per request and per event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.namespace import namespace_command, processes_here

PLACES = ("process", "serve", "serve-haproxy")
PORT = 8123
START_S = 120.0
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'


async def _answer(request: Request) -> Response:
    chunks = int(request.query_params.get("chunks", "0"))
    if not chunks:
        return JSONResponse({"choices": [{"index": 0, "message": {"content": "answer"}}]})

    async def events() -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield EVENT
            await asyncio.sleep(0)

    return StreamingResponse(events(), media_type="text/event-stream")


def application() -> Starlette:
    """What is served in every place."""
    return Starlette(routes=[Route("/answer", _answer, methods=["POST"])])


def _serve_alone() -> None:
    import uvicorn

    uvicorn.run(application(), host="127.0.0.1", port=PORT, log_level="error", access_log=False, loop="uvloop")


def _serve_in_ray() -> None:
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"enable_access_log": False})

    class Gateway:
        """Nothing beside the application."""

    deployment: Any = serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    serve.run(deployment(serve.ingress(application)(Gateway)).bind(), route_prefix="/")
    sys.stdin.read()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


def _processor_s(pids: set[int]) -> float:
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


async def _ask(session: aiohttp.ClientSession, chunks: int) -> tuple[float, int]:
    """Seconds until the first bytes, and the number of events."""
    begin = time.perf_counter()
    query = f"?chunks={chunks}" if chunks else ""
    async with session.post(f"http://127.0.0.1:{PORT}/answer{query}", json={"stream": bool(chunks)}) as answer:
        first = await answer.content.readany()
        seconds = time.perf_counter() - begin
        assert answer.status == 200, answer.status
        body = first + await answer.content.read()
    return seconds, body.count(b"data: ")


async def _drive(count: int, chunks: int, concurrency: int, busy_s: Callable[[], float]) -> dict[str, Any]:
    left = iter(range(count))
    seconds: list[float] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            taken, events = await _ask(session, chunks)
            assert events == chunks, f"{events} events of {chunks}"
            seconds.append(taken)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(_ask(session, chunks) for _ in range(concurrency)))
        busy, begin = busy_s(), time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(concurrency)))
        wall, busy = time.perf_counter() - begin, busy_s() - busy
    seconds.sort()
    found = {
        "per_s": round(count / wall, 1),
        "p50_ms": round(1e3 * seconds[len(seconds) // 2], 2),
        "p99_ms": round(1e3 * seconds[int(0.99 * (len(seconds) - 1))], 2),
        "processor_us": round(1e6 * busy / count),
    }
    if chunks:
        found["processor_us_per_event"] = round(1e6 * busy / count / chunks, 1)
    return found


async def _until_it_answers() -> None:
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
        while True:
            try:
                await _ask(session, 1)
            except (aiohttp.ClientError, AssertionError):
                await asyncio.sleep(0.1)
            else:
                return


async def _turn(place: str, options: argparse.Namespace) -> dict[str, Any]:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    if place == "serve-haproxy":
        environment |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    server = subprocess.Popen(  # noqa: ASYNC220  (nothing else runs meanwhile)
        [sys.executable, "-m", "benchmarks.gateway_place", "--place", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        await _until_it_answers()
        pids = {pid for pid, _ in processes_here()}
        unary = await _drive(options.requests, 0, options.concurrency, lambda: _processor_s(pids))
        streams = await _drive(options.streams, options.chunks, options.concurrency, lambda: _processor_s(pids))
        return {"requests": unary, "streams": streams}
    finally:
        assert server.stdin is not None
        server.stdin.close()
        if place == "process":
            server.terminate()
        server.wait(60.0)


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"load_average": os.getloadavg()[0], "places": {place: [] for place in PLACES}}
    for _ in range(options.rounds):
        for place in PLACES:
            found["places"][place].append(await _turn(place, options))
    return found


def main() -> int:
    """Measure, or serve in one place."""
    parser = argparse.ArgumentParser(description="Where an HTTP server would run.")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=64, help="events of a stream")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--place", choices=PLACES, help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.place:
        (_serve_alone if options.place == "process" else _serve_in_ray)()
    elif options.here:
        json.dump(asyncio.run(_measure(options)), sys.stdout, indent=1)
    else:
        return subprocess.run(
            namespace_command("benchmarks.gateway_place", *sys.argv[1:], "--here"), check=False
        ).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
