"""A rank's gRPC server with the test as its step loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import FinishReason, Load, RankInfo, RequestOutput, SampledToken
from baleen.telemetry import Log
from tests.support.clock import ManualClock
from tests.support.rank_grpc_client import RankGrpcClient
from workers.engine.inbox import Inbox
from workers.engine.messages import Command, Drain, HealthReport
from workers.server_thread import RankServer

WAIT_S = 30.0
INFO = RankInfo(
    incarnation=Incarnation("inc"),
    epoch=Epoch("epoch"),
    rank=1,
    world_size=2,
    role="decode",
    pool="p",
    group="g",
    address="127.0.0.1:1",
    model_fingerprint="00",
    vocab_size=288,
    max_context=100,
    eos_token_ids=(1,),
    num_blocks=8,
    max_running=4,
    pid=5,
)


def load(draining: bool = False) -> Load:
    """A load whose numbers differ."""
    return Load(
        free_blocks=8,
        num_waiting=1,
        num_running=2,
        queued_tokens=3,
        running_tokens=4,
        prefill_tokens_per_s=5.0,
        decode_tokens_per_s=6.0,
        draining=draining,
    )


def output(name: str, *, finish: FinishReason | None = None) -> RequestOutput:
    """One token of a request."""
    return RequestOutput(RequestId(name), 0, 0, (SampledToken(7),), finish, "", 3, 0)


class ServedRank:
    """A RankServer and what the step loop would see of it."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.inbox = Inbox()
        self.arrived = threading.Semaphore(0)
        self.inbox.connect(self.arrived.release)
        self.phase = "idle"
        self.seconds_in_phase = 0.5
        self.drains: list[Drain] = []
        self.drained = threading.Event()
        self.server = RankServer(
            "127.0.0.1:0",
            self.inbox,
            health=lambda: HealthReport(1, 41, self.phase, self.seconds_in_phase, None),
            drain=self._drain,
            clock=self.clock,
            log=Log("off"),
            stall_s=30.0,
        )
        self.address = self.server.start()

    def _drain(self, drain: Drain) -> None:
        self.drains.append(drain)
        self.drained.set()

    async def commands(self, count: int) -> list[Command]:
        """Wait for so many commands."""
        got: list[Command] = []
        while len(got) < count:
            assert await asyncio.to_thread(self.arrived.acquire, timeout=WAIT_S), got
            got.extend(self.inbox.take())
        return got


@asynccontextmanager
async def serving(*, ready: bool = True) -> AsyncIterator[tuple[ServedRank, RankGrpcClient]]:
    """A server and a client of it; closed at the end of the block."""
    rank = ServedRank()
    try:
        if ready:
            rank.server.ready(INFO)
        async with RankGrpcClient(rank.address) as client:
            yield rank, client
    finally:
        await asyncio.to_thread(rank.server.close, WAIT_S)
