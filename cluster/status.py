"""What a running cluster looks like: its ranks by their leases in Redis, each asked for its load and its progress."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baleen.clock import SystemClock
from baleen.errors import BaleenError
from baleen.ids import Incarnation
from baleen.redis_config import RedisConfig
from baleen.reports import Load, RankInfo
from baleen.tls_config import TlsConfig
from baleen.v1 import router_pb2, router_pb2_grpc, worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.rank_query import ASK_TIMEOUT_S, ask_rank
from cluster.run_state import RunState
from router.breaker import Breaker
from router.index import PrefixIndex, open_client

MEMBERS_TIMEOUT_S = 5.0
"""How long Redis may take, with a connection of its own for each command: people wait here, not requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStatus:
    """One rank. load: None before its first step. step, phase, seconds_in_phase: of its step loop.

    error: why it gave no answer, or that its epoch is over; else None.
    """

    info: RankInfo
    load: Load | None = None
    step: int | None = None
    phase: str = ""
    seconds_in_phase: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFigures:
    """What a router says of itself, field by field as in `GetStatusResponse` of router.proto."""

    policy: str
    metrics_address: str
    leaving: bool
    num_ranks: int
    num_queued: int
    queued_tokens: int
    num_active: int
    num_admitted: int
    num_shed: int
    num_expired: int
    prompt_tokens: int
    cached_prompt_tokens: int
    retry_budget: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatus:
    """One router. health: what its health service says. figures: None if it gives none."""

    health: str
    figures: RouterFigures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The whole cluster. routers: by their addresses. groups: running and wanted by pool. notice: as in RunState.

    redis_error: why Redis gave no answer, or None.
    """

    name: str
    routers: Mapping[str, RouterStatus]
    groups: Mapping[str, tuple[int, int]]
    redis_error: str | None
    ranks: tuple[RankStatus, ...]
    notice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def members(cluster: str, redis: RedisConfig) -> Mapping[Incarnation, RankInfo]:
    """The ranks whose lease is alive. Raises BaleenError if Redis gives no answer."""
    client = open_client(redis, most_connections=1, timeout_s=MEMBERS_TIMEOUT_S)
    index = PrefixIndex(client, cluster, Breaker(SystemClock()))
    try:
        found = await index.members(budget_s=MEMBERS_TIMEOUT_S)
        if found is None:
            raise BaleenError(f"Redis gives no answer: {index.counts.last_failure}")
        return found
    finally:
        await index.close()


async def cluster_status(state: RunState) -> ClusterStatus:
    """Ask everybody, all at once."""
    routers = asyncio.gather(*map(router_status, state.routers))
    redis_error = None
    infos: Sequence[RankInfo] = ()
    try:
        found = await members(state.name, state.redis)
        infos = sorted(found.values(), key=lambda info: (info.pool, info.group, info.rank, info.incarnation))
    except BaleenError as error:
        redis_error = str(error)
    ranks = await asyncio.gather(*(_rank_status(info, state.tls) for info in infos))
    return ClusterStatus(
        name=state.name,
        routers=dict(zip(state.routers, await routers, strict=True)),
        groups=state.groups,
        redis_error=redis_error,
        ranks=tuple(ranks),
        notice=state.notice,
    )


async def drain_group(
    cluster: str,
    redis: RedisConfig,
    group: str,
    reason: str,
    timeout_s: float | None,
    *,
    tls: TlsConfig | None = None,
) -> int:
    """Tell all ranks of a group to finish and leave; returns their number.

    Raises BaleenError if no rank of that group has a lease, or one does not answer.
    """
    found = await members(cluster, redis)
    ranks = [info for info in found.values() if info.group == group]
    if not ranks:
        present = ", ".join(sorted({info.group for info in found.values()})) or "none"
        raise BaleenError(f"no rank of group {group!r} has a lease; groups: {present}")
    await asyncio.gather(*(_drain(info, reason, timeout_s, tls) for info in ranks))
    return len(ranks)


async def _drain(info: RankInfo, reason: str, timeout_s: float | None, tls: TlsConfig | None) -> None:
    async with open_channel(info.address, tls=tls) as channel:
        request = worker_pb2.DrainRequest(reason=reason)
        if timeout_s is not None:
            request.timeout_s = timeout_s
        try:
            await worker_pb2_grpc.WorkerServiceStub(channel).Drain(request, timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise BaleenError(f"rank {info.rank} of {info.group} at {info.address}: {error.details()}") from error


async def _rank_status(info: RankInfo, tls: TlsConfig | None) -> RankStatus:
    answer = await ask_rank(info.address, tls=tls)
    return RankStatus(
        info=info,
        load=answer.load,
        step=answer.step,
        phase=answer.phase,
        seconds_in_phase=answer.seconds_in_phase,
        error=answer.error,
    )


async def router_status(address: str) -> RouterStatus:
    """What the router at `address` says."""
    async with open_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            return RouterStatus(health=f"gives no answer ({error.code().name})")
        health = str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)).lower()
        try:
            told = await router_pb2_grpc.RouterServiceStub(channel).GetStatus(
                router_pb2.GetStatusRequest(), timeout=ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            return RouterStatus(health=f"{health}, tells nothing of itself ({error.code().name})")
    figures = {field.name: getattr(told, field.name) for field in fields(RouterFigures)}
    return RouterStatus(health=health, figures=RouterFigures(**figures))
