"""A cluster of real processes without Ray, for faults: groups that are replaced when they end, routers, a Redis.

Between routers and ranks, and between ranks, stand fault proxies: every rank advertises them instead of itself. Each
part has a fixed address in a loopback network of this cluster's own, so that a replacement is found where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from baleen.clock import SystemClock
from baleen.v1 import inference_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.embedded import find_server
from router.breaker import Breaker
from router.index import PrefixIndex
from router.index import open_client as open_index_client
from tests.support.fault_group import CLUSTER, READY_S, Changes, Group, Rank
from tests.support.forked import ForkedProcess, router_program, start_fork_server
from tests.support.scrape import scrape

SESSION = {"open_s": 2.0, "probe_s": 0.25, "silence_s": 2.5, "unary_s": 2.0}
RESERVE_S = 1.5


class RouterReplica:
    """A router process, started again when it ends.

    found: rank address to when it was found last. num_found: lives of a rank there that it has a session to; the loss
    of an old one may come after the new one was found.
    """

    def __init__(self, cluster: FaultCluster, name: str, host: str) -> None:
        self._cluster = cluster
        self.name = name
        self.address = f"{host}:7000"
        self.process: ForkedProcess | None = None
        self.found: dict[str, float] = {}
        self.num_found: Counter[str] = Counter()
        self.losses: list[tuple[float, str]] = []
        self.is_up = False
        self.lives = 0
        self.channel: grpc.aio.Channel | None = None
        self.stub: Any = None
        self._leaving = False
        self._log = (cluster.directory / f"{name}.log").open("a", buffering=1)

    @property
    def living(self) -> ForkedProcess:
        """The process."""
        assert self.process is not None
        return self.process

    async def run(self) -> None:
        """Start, watch and start again."""
        directory = self._cluster.directory
        path = directory / f"{self.name}.json"
        config = {
            "listen": self.address,
            "redis": {"url": self._cluster.redis.url},
            "cluster": CLUSTER,
            "model": str(self._cluster.checkpoint),
            "policy": "round_robin",
            # short prompts too are prefilled elsewhere
            "parameters": {"short_tail_tokens": 0},
            "session": SESSION,
            # ranks die on purpose here, and others starve on a busy machine: no request is to blame for it
            "limits": {"reserve_s": RESERVE_S, "poison_deaths": 4},
            # faults come here a thousand times as often as the default store of retries is made for
            "retry_share": 8.0,
            # every trial sends the same prompts: one that failed must not fail those after it
            "quarantine_s": 0.0,
        }
        path.write_text(json.dumps(config))
        while not self._leaving:
            self.found, self.num_found, self.lives = {}, Counter(), self.lives + 1
            self.process = ForkedProcess(self.name, router_program, path, directory / f"{self.name}.err", self._take)
            await self.process.ended.wait()
            self.is_up = False
            self._cluster.changes.notify()
            await self._drop_channel()

    def knows(self, rank: Rank) -> bool:
        """Whether it has a session to the present life of a rank."""
        address = rank.door.address
        return self.num_found[address] >= 1 and self.found[address] >= rank.started_at

    async def leave(self) -> None:
        """End for good."""
        self._leaving = True
        if self.process is not None:
            await self.process.kill()
        await self._drop_channel()
        self._log.close()

    async def _drop_channel(self) -> None:
        if self.channel is not None:
            channel, self.channel = self.channel, None
            await channel.close(None)

    def _take(self, line: str) -> None:
        if not self._log.closed:
            self._log.write(line + "\n")
        if "router listens" in line:
            self.channel = open_channel(self.address)
            self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
            self.is_up = True
        elif (address := re.search(r"127\.\d+\.\d+\.\d+:7003", line)) and "rank found" in line:
            self.found[address[0]] = time.monotonic()
            self.num_found[address[0]] += 1
        elif address and "rank lost" in line:
            self.num_found[address[0]] -= 1
            self.losses.append((time.monotonic(), address[0]))
        self._cluster.changes.notify()


# ends the server when the pipe to it closes, by whatever end of this process
_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- >&2 &
server=$!
echo $server
{ read -r _; kill -9 "$server"; } <&3 >/dev/null &
watcher=$!
wait "$server"
code=$?
kill "$watcher"
exit "$code"
"""


class RedisServer:
    """A server at a fixed address that keeps nothing."""

    def __init__(self, host: str, directory: Path) -> None:
        self._host = host
        self._directory = directory
        self.url = f"redis://{host}:6399/0"
        self._guard: subprocess.Popen[bytes] | None = None
        self._pid = 0

    async def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        settings = ["--bind", self._host, "--port", "6399", "--save", "", "--appendonly", "no", "--loglevel", "warning"]
        command = ["/bin/sh", "-c", _GUARD, "sh", str(find_server()), "--dir", str(self._directory), *settings]
        with (self._directory / "redis.log").open("ab") as log:
            guard = await asyncio.to_thread(
                subprocess.Popen, command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.PIPE
            )
        assert guard.stdout is not None
        self._guard, self._pid = guard, int(await asyncio.to_thread(guard.stdout.readline))
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection(self._host, 6399)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                return

    def send(self, number: signal.Signals) -> None:
        """Signal the server."""
        os.kill(self._pid, number)

    @property
    def is_stopped(self) -> bool:
        """Whether the system says that it is stopped."""
        return Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def kill(self) -> int:
        """End it by SIGKILL; returns its exit code as a shell tells it."""
        guard, self._guard = self._guard, None
        if guard is None:
            return 0
        assert guard.stdin is not None and guard.stdout is not None
        self.send(signal.SIGKILL)
        code = guard.wait(10)
        guard.stdin.close()
        guard.stdout.close()
        return code


class FaultCluster:
    """Everything; an async context manager. ep: ranks of each group of the two pools."""

    def __init__(
        self,
        checkpoint: Path,
        directory: Path,
        *,
        prefill: tuple[int, ...] = (2, 1),
        decode: tuple[int, ...] = (2, 1),
        routers: int = 2,
    ) -> None:
        self.checkpoint = checkpoint
        self.directory = directory
        self.changes = Changes()
        self._network = _free_network()
        self.redis = RedisServer(self.host(1), directory)
        self.groups: list[Group] = []
        host = 10
        for role, sizes in (("prefill", prefill), ("decode", decode)):
            for number, ep in enumerate(sizes):
                self.groups.append(Group(self, f"{role}-{number}", role, ep, host))
                host += ep
        self.routers = [RouterReplica(self, f"router-{number}", self.host(100 + number)) for number in range(routers)]
        self.index: PrefixIndex | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def host(self, number: int) -> str:
        """An address of this cluster's own."""
        return f"{self._network}.{number}"

    @property
    def ranks(self) -> list[Rank]:
        """All ranks."""
        return [rank for group in self.groups for rank in group.ranks]

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)

    async def __aenter__(self) -> FaultCluster:
        start_fork_server()
        try:
            await self.redis.start()
            client = open_index_client(self.redis.url)
            self.index = PrefixIndex(client, CLUSTER, Breaker(SystemClock()))
            for rank in self.ranks:
                await rank.door.accept()
                await rank.dock.accept()
            self._tasks = [asyncio.create_task(part.run()) for part in (*self.groups, *self.routers)]
            await self.whole(2 * READY_S)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(part.leave() for part in (*self.groups, *self.routers)))
        for rank in self.ranks:
            await rank.door.__aexit__()
            await rank.dock.__aexit__()
        if self.index is not None:
            await self.index.close()
        self.redis.kill()

    def failed_part(self) -> str:
        """What a supervisor of ours died of, or an empty text."""
        return "; ".join(repr(task.exception()) for task in self._tasks if task.done() and not task.cancelled())

    def is_whole(self) -> bool:
        """Every group serves, every router runs and has found every rank of now."""
        if failed := self.failed_part():
            raise RuntimeError(failed)
        return all(group.is_up for group in self.groups) and all(
            router.is_up and all(router.knows(rank) for rank in self.ranks) for router in self.routers
        )

    async def whole(self, timeout_s: float = 60.0) -> float:
        """Wait until everything is there and known; returns since when. Raises TimeoutError."""
        try:
            return await self.changes.until(self.is_whole, timeout_s, "the cluster is whole")
        except TimeoutError as error:
            groups = {group.name: group.is_up for group in self.groups}
            unknown = {
                router.name: [rank.name for rank in self.ranks if not router.knows(rank)] for router in self.routers
            }
            raise TimeoutError(f"{error}; groups {groups}, routers miss {unknown}") from None

    def is_at_rest(self) -> bool:
        """Every rank that is up reports that it holds nothing."""
        return all(rank.is_at_rest for rank in self.ranks)

    async def num_expired(self) -> float:
        """Reservations that only their own deadline has freed, in this life of each rank that is up."""
        scrapes = await asyncio.gather(*(scrape(rank.metrics) for rank in self.ranks))
        return sum(found.value("kv_reservations_expired_total") for found in scrapes)

    async def leases(self, count: int, timeout_s: float) -> float:
        """Wait until Redis knows so many ranks; returns when that was."""
        assert self.index is not None
        async with asyncio.timeout(timeout_s):
            while True:
                members = await self.index.members()
                if members is not None and len(members) >= count:
                    return time.monotonic()
                await asyncio.sleep(0.02)


def _free_network() -> str:
    """Three bytes of a loopback network that nobody uses."""
    while True:
        network = f"127.{random.randrange(20, 250)}.{random.randrange(1, 250)}"
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((f"{network}.1", 6399))
            except OSError:
                continue
            return network
