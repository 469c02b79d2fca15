"""A router and two real ranks, one of which prefills for the other, used a little and looked at from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.config import TraceConfig
from baleen.telemetry import Log
from baleen.v1 import inference_pb2_grpc, worker_pb2
from baleen.wire.channel import open_channel
from router.config import RouterProcessConfig
from router.main import Router
from tests.support.rank_client import RankClient, rank_processes
from tests.support.rank_grpc_client import RankGrpcClient
from tests.support.router_client import NO_SHORT_CUT, Client, eventually

NUM_BLOCKS = 64


@dataclass(eq=False)
class Watched:
    """Everything that runs. ranks: prefill, decode; infos: what they say of themselves; lines: the router's log."""

    client: Client
    ranks: tuple[RankClient, RankClient]
    infos: tuple[worker_pb2.RankInfo, worker_pb2.RankInfo]
    lines: list[str]


@contextlib.asynccontextmanager
async def watched_cluster(checkpoint: Path, directory: Path, *, traces: dict[str, Any]) -> AsyncIterator[Watched]:
    """Two groups of one rank each, a router that knows their addresses, and a client. All serve /metrics."""
    with contextlib.ExitStack() as stack:
        ranks = []
        for role in ("prefill", "decode"):
            serve = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "role": role, "pool": role}
            place = directory / role
            place.mkdir()
            sections = {"serve": {**serve, "group": f"{role}/0"}, "cache": {"num_blocks": NUM_BLOCKS}, "traces": traces}
            ranks += stack.enter_context(rank_processes(checkpoint, place, **sections))
        addresses = [rank.expect("ready")["address"] for rank in ranks]
        lines: list[str] = []
        router = Router(
            RouterProcessConfig(
                listen="127.0.0.1:0",
                listen_metrics="127.0.0.1:0",
                ranks=",".join(addresses),
                model=str(checkpoint) if (checkpoint / "tokenizer.json").exists() else "",
                parameters=NO_SHORT_CUT,
                traces=TraceConfig(**traces),
            ),
            log=Log(write=lines.append),
        )
        address = await router.start()
        try:
            await eventually(lambda: len(router.members.snapshot().ranks) == 2)
            infos = []
            for rank_address in addresses:
                async with RankGrpcClient(rank_address) as rank:
                    infos.append(await rank.info())
            async with open_channel(address) as channel:
                client = Client(inference_pb2_grpc.InferenceServiceStub(channel), address, router)
                yield Watched(client, (ranks[0], ranks[1]), (infos[0], infos[1]), lines)
        finally:
            await router.stop(0.0)
            await asyncio.sleep(0)
