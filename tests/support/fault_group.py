"""The groups of a fault cluster: ranks behind fault proxies, started again as a whole whenever they have ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from baleen.ids import new_epoch
from baleen.reports import Load
from baleen.v1 import worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.reports import load_from_proto
from loadtest.fault_proxy import FaultProxy
from tests.support.forked import ForkedProcess, rank_program

if TYPE_CHECKING:
    from tests.support.fault_cluster import FaultCluster

NUM_BLOCKS = 10
READY_S = 60.0
MOST_FAILED = 5
"""Starts in a row that may fail."""

SETTLE_S = 5.0
"""How long the rest of a group may live after its first rank has ended."""

CLUSTER = "faults"
HEARTBEAT = {"heartbeat_interval_s": 0.25, "heartbeat_timeout_s": 2.5, "collective_timeout_s": 10.0}
TRANSFER_WAIT_S = 2.0
PATCH = {
    "workers.transfer.sender": {"IO_TIMEOUT_S": TRANSFER_WAIT_S, "CONNECT_TIMEOUT_S": TRANSFER_WAIT_S},
    "workers.transfer.receiver": {"BLOCK_TIMEOUT_S": TRANSFER_WAIT_S, "HANDSHAKE_TIMEOUT_S": TRANSFER_WAIT_S},
}
"""Limits that are constants of the code, shortened so that a trial takes seconds."""


class Changes:
    """Wakes all who wait for a condition whenever something may have changed."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something happened."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Wait for `condition`; returns when it held (time.monotonic). Raises TimeoutError that says `what`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout_at(deadline - time.monotonic() + asyncio.get_running_loop().time()):
                    await waiter
            except TimeoutError:
                raise TimeoutError(f"not within {timeout_s:g} s: {what}") from None
            finally:
                self._waiters.discard(waiter)
        return time.monotonic()


class Rank:
    """A place in a group, and who has it now. door: before its gRPC server, dock: before its transfer port."""

    def __init__(self, cluster: FaultCluster, group: Group, number: int, host: str) -> None:
        self._cluster = cluster
        self.group = group
        self.number = number
        self.name = f"{group.name}-{number}"
        self.listen, self.takes, self.metrics = (f"{host}:{port}" for port in (7001, 7002, 7005))
        self.door = FaultProxy(f"{host}:7003", self.listen)
        self.dock = FaultProxy(f"{host}:7004", self.takes)
        self.process: ForkedProcess | None = None
        self.started_at = 0.0
        self.load: Load | None = None
        self.events: list[dict[str, Any]] = []
        self._watch: asyncio.Task[None] | None = None

    @property
    def living(self) -> ForkedProcess:
        """The process."""
        assert self.process is not None
        return self.process

    @property
    def is_at_rest(self) -> bool:
        """Whether its own report says that nothing runs, waits, or is kept for anybody."""
        load = self.load
        return load is not None and (load.num_running, load.num_waiting, self.num_missing) == (0, 0, 0)

    @property
    def num_missing(self) -> int:
        """Blocks that are held, lent or arriving, and any that the rank's own counts do not account for."""
        load = self.load
        if load is None:
            return 0
        kept = load.held_blocks + load.lent_blocks + load.arriving_blocks
        return kept + abs(NUM_BLOCKS - load.free_blocks - kept)

    def start(self, epoch: str, rendezvous: Path) -> None:
        group, directory = self.group, self._cluster.directory
        config = {
            "model": {"path": str(self._cluster.checkpoint), "num_threads": 1},
            "cache": {"num_blocks": NUM_BLOCKS},
            "engine": {"max_chunk_tokens": 64, "max_batch_tokens": 256, "max_running": 8, "audit": "step"},
            "serve": {
                "listen": self.listen,
                "metrics_listen": self.metrics,
                "advertise": self.door.address,
                "transfer_listen": self.takes,
                "transfer_advertise": self.dock.address,
                "role": group.role,
                "pool": group.role,
                "group": group.name,
                "redis": {"url": self._cluster.redis.url},
                "cluster": CLUSTER,
            },
            "parallel": {
                "rank": self.number,
                "world_size": len(group.ranks),
                "epoch": epoch,
                "rendezvous": f"file://{rendezvous}",
                **HEARTBEAT,
            },
        }
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps({"rank": config, "patch": PATCH}))
        self.events, self.load, self.started_at = [], None, time.monotonic()
        self.process = ForkedProcess(self.name, rank_program, path, directory / f"{self.name}.log", self._take)

    def is_ready(self) -> bool:
        return any(event["type"] == "ready" for event in self.events)

    async def watch(self) -> None:
        """Follow its reports, on a session of our own that no proxy disturbs."""
        opened = asyncio.Event()
        self._watch = asyncio.create_task(self._follow(opened))
        async with asyncio.timeout(READY_S):
            await opened.wait()

    async def _follow(self, opened: asyncio.Event) -> None:
        channel = open_channel(self.listen)
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        call = stub.Session()
        try:
            await call.write(worker_pb2.SessionRequest(health_query=worker_pb2.HealthQuery()))
            async for message in call:
                opened.set()
                if message.HasField("step_report"):
                    self.load = load_from_proto(message.step_report.load)
                    self._cluster.changes.notify()
        except grpc.aio.AioRpcError:
            pass
        finally:
            call.cancel()
            await channel.close(None)

    async def end_watch(self) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    def _take(self, line: str) -> None:
        self.events.append(json.loads(line))
        self._cluster.changes.notify()


class Group:
    """Ranks that live and die together; started again, whole, whenever they have ended, as Serve does."""

    def __init__(self, cluster: FaultCluster, name: str, role: str, ep: int, first_host: int) -> None:
        self._cluster = cluster
        self.name = name
        self.role = role
        self.ranks: list[Rank] = []
        self.ranks += [Rank(cluster, self, number, cluster.host(first_host + number)) for number in range(ep)]
        self.lives = 0
        self.is_up = False
        self.codes: list[int] = []
        self.num_forced = self.num_failed = 0
        self._leaving = False

    async def run(self) -> None:
        """Form, watch and form again, until told to leave."""
        while not self._leaving:
            await self._form()
            if not self.is_up:
                # as Serve does: once more
                continue
            await asyncio.wait(
                [asyncio.create_task(rank.living.ended.wait()) for rank in self.ranks],
                return_when=asyncio.FIRST_COMPLETED,
            )
            self.is_up = False
            self._cluster.changes.notify()
            await self._see_out()

    async def _form(self) -> None:
        rendezvous = self._cluster.directory / f"{self.name}.rendezvous-{self.lives}"
        self.lives += 1
        for rank in self.ranks:
            rank.start(new_epoch() if len(self.ranks) == 1 else f"{self.name}-{self.lives}-{id(self)}", rendezvous)

        def settled() -> bool:
            return all(rank.is_ready() or rank.living.code is not None for rank in self.ranks)

        await self._cluster.changes.until(settled, READY_S, f"{self.name} is ready")
        if any(rank.living.code is not None for rank in self.ranks):
            await self._see_out()
            self.num_failed += 1
            if self.num_failed >= MOST_FAILED:
                raise RuntimeError(f"{self.name} did not form: {[rank.events[-1:] for rank in self.ranks]}")
            return
        await asyncio.gather(*(rank.watch() for rank in self.ranks))
        self.is_up, self.num_failed = True, 0
        self._cluster.changes.notify()

    async def _see_out(self) -> None:
        """The others end by themselves; so does one that was stopped, once it goes on."""
        for rank in self.ranks:
            # let those that are left learn of it before the stopped one speaks again
            if rank.living.code is None and not rank.living.is_stopped:
                with contextlib.suppress(TimeoutError):
                    await rank.living.wait(SETTLE_S)
        for rank in self.ranks:
            rank.living.send(signal.SIGCONT)
        for rank in self.ranks:
            try:
                await rank.living.wait(SETTLE_S)
            except TimeoutError:
                self.num_forced += 1
                await rank.living.kill()
            await rank.end_watch()
        self.codes = [code for rank in self.ranks if (code := rank.living.code) is not None]

    async def leave(self) -> None:
        """End for good."""
        self._leaving = True
        for rank in self.ranks:
            if rank.process is not None:
                await rank.process.kill()
                await rank.end_watch()
