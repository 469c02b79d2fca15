"""Replicas of routers: whoever takes the place of one is found where that one was, while its requests still run."""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from operator import gt
from pathlib import Path

import pytest

from baleen.errors import ConfigError
from baleen.v1 import inference_pb2_grpc
from baleen.wire.channel import open_channel
from router.config import RouterProcessConfig
from router.gateway.line import Line
from router.main import Router
from tests.support.fake_rank import FakeRank, fake_tokens
from tests.support.processes import Child, nursery
from tests.support.replica import router_replica
from tests.support.router_client import PROMPT, Caller, eventually, request, run

TOKENS = 400

pytestmark = pytest.mark.slow


@dataclass
class Started:
    """A replica and its router."""

    child: Child
    address: str
    router: int


@asynccontextmanager
async def replicas_of(directory: Path, count: int):
    """What starts a replica of a router with one rank, and that rank, which takes its time."""
    rank = FakeRank()
    rank.token_delay_s = 0.01
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(rank)
        children = stack.enter_context(nursery(directory))
        base = free_port()
        config = {
            "listen": f"127.0.0.1:{base}",
            "listen_metrics": f"127.0.0.1:{base + count}",
            "ranks": rank.info.address,
            "drain_timeout_s": 30.0,
        }

        async def start(generation: int = 1) -> Started:
            own = {**config, "takes_over": generation > 1}
            child = children.fork("replica", router_replica, own, count, str(directory / "logs"), generation)
            told = await asyncio.to_thread(child.event)
            return Started(child, told["address"], told["router"])

        (directory / "logs").mkdir()
        yield start, rank, [f"127.0.0.1:{base + number}" for number in range(count)]


def free_port() -> int:
    """With a few free ones after it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            base: int = first.getsockname()[1]
            try:
                for number in range(1, 5):
                    socket.create_server(("127.0.0.1", base + number)).close()
            except OSError:
                continue
            return base


async def answer(address: str, max_tokens: int = 8) -> list[int]:
    async with open_channel(address) as channel:
        caller = Caller(inference_pb2_grpc.InferenceServiceStub(channel), address)
        return (await caller.generate(request(PROMPT, max_tokens=max_tokens), wait_for_ready=True)).tokens[0]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to go"])
def test_the_next_replica_listens_where_the_last_one_did_and_what_that_one_runs_goes_on(tmp_path, end):
    async def scenario():
        async with replicas_of(tmp_path, 1) as (start, rank, [address]):
            first = await start()
            assert first.address == address
            running = asyncio.create_task(answer(address, TOKENS))
            await eventually(lambda: rank.num_tokens >= 2)
            first.child.send(end)
            second = await start()
            assert second.address == address
            assert await answer(address) == fake_tokens(PROMPT, 8)
            assert await running == fake_tokens(PROMPT, TOKENS)
            await eventually(lambda: not Path(f"/proc/{first.router}").exists() or is_dead(first.router))
            assert not is_dead(second.router)

    run(scenario())


def test_each_replica_has_an_address_of_its_own_and_the_free_one_is_taken_again(tmp_path):
    async def scenario():
        async with replicas_of(tmp_path, 2) as (start, _, addresses):
            first, second = await asyncio.gather(start(), start())
            assert sorted([first.address, second.address]) == addresses
            for lost, kept in ((first, second), (second, None)):
                os.kill(lost.router, signal.SIGKILL)
                lost.child.send(signal.SIGTERM)
                third = await start()
                assert third.address == lost.address
                if kept is not None:
                    assert await answer(kept.address) == fake_tokens(PROMPT, 8)

    run(scenario())


def test_the_next_generation_takes_over_while_requests_come_and_none_is_lost(tmp_path):
    async def scenario():
        async with replicas_of(tmp_path, 1) as (start, _, [address]):
            first = await start()
            running = asyncio.create_task(answer(address, TOKENS))
            ends = asyncio.Event()

            counts = [0, 0, 0, 0]

            async def client(number: int) -> None:
                while not ends.is_set():
                    # a connection of its own, and no second try
                    async with open_channel(address) as channel:
                        caller = Caller(inference_pb2_grpc.InferenceServiceStub(channel), address)
                        told = await caller.generate(request(PROMPT, max_tokens=2))
                    assert told.tokens[0] == fake_tokens(PROMPT, 2)
                    counts[number] += 1

            async def gateway(number: int) -> None:
                async with open_channel(address) as channel:
                    line = Line(inference_pb2_grpc.InferenceServiceStub(channel))
                    while not ends.is_set():
                        # one stream for all of them, for as long as it lasts
                        strand = line.start(request(PROMPT, max_tokens=2), tenant="", traceparent="", deadline_s=60.0)
                        told = []
                        while deltas := await strand.deltas():
                            told += [token for delta in deltas for token in delta.token_ids]
                        assert told == fake_tokens(PROMPT, 2)
                        counts[number] += 1
                    await line.close()

            talks = (client, client, gateway, gateway)
            clients = [asyncio.create_task(talk(number)) for number, talk in enumerate(talks)]
            # one that ends has failed
            await eventually(lambda: min(counts) > 0 or any(client.done() for client in clients))
            second = await start(2)
            assert second.address == first.address
            assert not is_dead(first.router), "both are there"
            first.child.send(signal.SIGTERM)
            assert await running == fake_tokens(PROMPT, TOKENS), "what the first has begun it ends"
            await eventually(lambda: is_dead(first.router))
            before = list(counts)
            await eventually(lambda: all(map(gt, counts, before)) or any(client.done() for client in clients))
            ends.set()
            await asyncio.gather(*clients)
            assert await answer(address) == fake_tokens(PROMPT, 8)

    run(scenario())


def test_a_router_that_takes_over_from_nobody_shares_no_port(tmp_path):
    async def scenario():
        async with replicas_of(tmp_path, 1) as (start, _, [address]):
            await start(2)
            for takes_over in (True, False):
                router = Router(RouterProcessConfig(listen=address, ranks="127.0.0.1:1", takes_over=takes_over))
                if takes_over:
                    assert await router.start() == address
                else:
                    with pytest.raises(ConfigError, match=f"listen is '{address}', which cannot be listened on"):
                        await router.start()
                await router.stop(0)

    run(scenario())


def is_dead(pid: int) -> bool:
    """Whether it waits to be reaped only, or has been."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
