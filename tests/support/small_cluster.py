"""A cluster of real processes without Ray: tiny ranks of EP 1, routers, a Redis; all gone when the block is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.v1 import inference_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.embedded import EmbeddedRedis
from tests.support.rank_client import REPO, RankClient
from tests.support.rank_grpc_client import RankGrpcClient, SessionClient
from tests.support.redis_server import wait_for
from tests.support.router_client import Caller

CLUSTER = "small"


class ServingChild:
    """One process that serves: a router, or a gateway. address: where it listens."""

    def __init__(self, kind: str, config: dict[str, Any], directory: Path, name: str) -> None:
        path = directory / f"{name}.json"
        path.write_text(json.dumps({"listen": "127.0.0.1:0", **config}))
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"cluster.{kind}_process", "--config", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=REPO,
            )
        self.address = ""

    @property
    def log(self) -> str:
        """Its stderr so far."""
        return self._log.read_text()

    def await_address(self) -> str:
        """Until it listens; if it ends instead, fail with its log."""
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()
        assert self.address, self.log
        return self.address

    def await_ranks(self, num_ranks: int) -> None:
        """Until a router listens and has found so many ranks."""
        self.await_address()
        wait_for(lambda: self.log.count("rank found") >= num_ranks, timeout_s=60.0)

    def kill(self) -> None:
        """End it by force, if it still lives, and let its pipes go."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass(eq=False)
class SmallCluster:
    """What runs. ranks in the order of the roles that were asked for; rank_addresses of their gRPC servers."""

    ranks: list[RankClient]
    rank_addresses: list[str]
    routers: list[ServingChild]
    redis_url: str
    checkpoint: Path
    directory: Path
    num_started: int = 0

    @contextlib.contextmanager
    def another_router(self, config: dict[str, Any]) -> Iterator[ServingChild]:
        """One more, for the block; it may be dead by then."""
        router = self._start(config)
        try:
            router.await_ranks(len(self.ranks))
            yield router
        finally:
            router.kill()

    def _start(self, config: dict[str, Any]) -> ServingChild:
        self.num_started += 1
        own = {"redis": {"url": self.redis_url}, "model": str(self.checkpoint), "cluster": CLUSTER, **config}
        return ServingChild("router", own, self.directory, f"router-{self.num_started}")

    def kill_routers(self) -> None:
        """End those that still live."""
        for router in self.routers:
            router.kill()

    def restart_router(self, number: int, config: dict[str, Any]) -> None:
        """Another one at the address of one that has ended."""
        self.routers[number] = self._start({"listen": self.routers[number].address, **config})

    @contextlib.asynccontextmanager
    async def loads(self) -> AsyncIterator[list[SessionClient]]:
        """A session to each rank, with its latest load, for the block."""
        async with contextlib.AsyncExitStack() as stack:
            sessions = []
            for address in self.rank_addresses:
                client = await stack.enter_async_context(RankGrpcClient(address))
                sessions.append(await stack.enter_async_context(client.session()))

            async def follow(session: SessionClient) -> None:
                while await session.next() is not None:
                    pass

            tasks = [asyncio.create_task(follow(session)) for session in sessions]
            try:
                yield sessions
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def gateway(self, **settings: Any) -> Iterator[str]:
        """A gateway before all routers, for the block, without keys unless told: its URL, without a path."""
        config = {
            "routers": [router.address for router in self.routers],
            "model": str(self.checkpoint),
            "model_name": "baleen",
            "accounts": str(self.directory / "accounts.sqlite"),
            "settings": settings,
        }
        child = ServingChild("gateway", config, self.directory, "gateway")
        try:
            yield f"http://{child.await_address()}"
        finally:
            child.kill()

    @contextlib.asynccontextmanager
    async def client(self, router: int = 0) -> AsyncIterator[Caller]:
        """A client of one of the routers."""
        address = self.routers[router].address
        async with open_channel(address) as channel:
            yield Caller(inference_pb2_grpc.InferenceServiceStub(channel), address)


@contextlib.contextmanager
def small_cluster(
    checkpoint: Path,
    directory: Path,
    *,
    roles: Sequence[str],
    routers: Sequence[dict[str, Any]] = ({},),
    **sections: dict[str, Any],
) -> Iterator[SmallCluster]:
    """One rank for each of `roles`, one router for each configuration; sections: of all ranks' configuration."""
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(EmbeddedRedis(directory=Path("/tmp"))).url
        ranks: list[RankClient] = []
        for number, role in enumerate(roles):
            serve = {"listen": "127.0.0.1:0", "role": role, "pool": role, "group": f"{role}/{number}"}
            config = {
                "model": {"path": str(checkpoint), "num_threads": 1, **sections.get("model", {})},
                "cache": {"num_blocks": 64, **sections.get("cache", {})},
                "engine": sections.get("engine", {}),
                "serve": {**serve, "redis": {"url": redis_url}, "cluster": CLUSTER},
            }
            ranks.append(RankClient(config, directory, f"{role}-{number}"))
            stack.callback(ranks[-1].kill)
        cluster = SmallCluster(ranks, [], [], redis_url, checkpoint, directory)
        stack.callback(cluster.kill_routers)
        for router in routers:
            cluster.routers.append(cluster._start(router))
        cluster.rank_addresses = [rank.expect("ready")["address"] for rank in ranks]
        for child in cluster.routers:
            child.await_ranks(len(ranks))
        yield cluster
