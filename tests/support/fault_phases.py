"""How far a request has come, as events tell: Explain, the client's own tokens, proxies' counters, load reports."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from typing import Any

import grpc

from baleen.v1 import common_pb2, inference_pb2
from loadtest.fault_proxy import Fault
from tests.support.fault_calls import Call
from tests.support.fault_cluster import FaultCluster
from tests.support.fault_group import Group, Rank

PHASES = ["queued", "prefilling", "transferring", "decoding", "draining"]
_STEPS = {"queued", "reserving", "prefilling", "decoding", "moving"}
HELD_AT_BYTE = 250_000
"""Of some 492,000 that a transfer of three blocks has: in the middle of the second block."""

PHASE_S = 20.0


class Missed(Exception):
    """The requests went past the phase; the trial is to be repeated."""


@dataclass(frozen=True)
class Probe:
    """A request in the wanted phase, and the rank of the victim's group that works on it, or would be next."""

    call: Call
    rank: Rank


@dataclass(frozen=True)
class Story:
    """What the router says of a request: its last step, its ranks (pool/group/rank), what failed."""

    step: str
    prefill: str
    decode: str
    failures: tuple[tuple[float, str], ...]


async def story_of(call: Call) -> Story | None:
    """None if the router does not know it, or is not there."""
    if call.router.stub is None:
        return None
    try:
        request = inference_pb2.ExplainRequest(request_id=call.request_id)
        reply: Any = await call.router.stub.Explain(request, timeout=5.0)
    except grpc.aio.AioRpcError:
        return None
    except asyncio.CancelledError:
        if call.router.channel is not None:
            raise
        return None
    steps = [milestone.event for milestone in reply.milestones if milestone.event in _STEPS]
    ended = [m for m in reply.milestones if m.event.startswith("end:")]
    chosen = {decision.role: decision.chosen for decision in reply.decisions}
    return Story(
        "ended" if ended else steps[-1] if steps else "",
        chosen.get(common_pb2.ROLE_PREFILL, ""),
        chosen.get(common_pb2.ROLE_DECODE, ""),
        tuple((call.sent_at + m.at_s, m.event) for m in reply.milestones if "failed" in m.event and m not in ended),
    )


def prepare(cluster: FaultCluster, phase: str, side: str) -> None:
    """Before the requests are sent: have transfers stop where the phase needs it: before they begin, or half-way."""
    half_way = phase == "transferring" or (phase == "draining" and side == "prefill")
    if half_way or phase == "prefilling":
        for rank in cluster.ranks:
            if rank.group.role == "decode":
                rank.dock.plan(Fault("hold", HELD_AT_BYTE if half_way else 0))


def let_go(cluster: FaultCluster) -> None:
    """After the fault: everything that a proxy held goes on, and nothing more is planned."""
    for rank in cluster.ranks:
        rank.dock.forget_plans()
        rank.dock.release()


async def reach(cluster: FaultCluster, phase: str, victim: Group, calls: list[Call]) -> Probe:
    """Wait until one of the requests is in the phase, and its work is, or will be, the victim's. Raises Missed."""
    if phase == "draining":
        probe = await reach(cluster, "transferring" if victim.role == "prefill" else "decoding", victim, calls)
        return await _begin_drain(cluster, victim, probe)
    deadline = time.monotonic() + PHASE_S
    while time.monotonic() < deadline:
        running = [call for call in calls if call.ended_at is None]
        if not running:
            raise Missed(f"all requests ended without one in {phase}")
        ranks = await asyncio.gather(*(_rank_in(cluster, phase, victim, call) for call in running))
        for call, rank in zip(running, ranks, strict=True):
            if rank is not None:
                return Probe(call, rank)
        await asyncio.sleep(0.001)
    raise Missed(f"no request came to {phase} within {PHASE_S:g} s")


async def _rank_in(cluster: FaultCluster, phase: str, victim: Group, call: Call) -> Rank | None:
    if phase == "decoding" and not 4 <= call.num_tokens <= 22:
        return None
    story = await story_of(call)
    if story is None or call.ended_at is not None:
        return None
    if phase == "queued":
        return victim.ranks[0] if story.step == "queued" and not story.decode else None
    wanted = "prefilling" if phase == "transferring" else phase
    if story.step != wanted:
        return None
    name = story.prefill if victim.role == "prefill" else story.decode
    rank = next((rank for rank in victim.ranks if name.endswith(f"/{victim.name}/{rank.number}")), None)
    if rank is None or phase != "transferring":
        return rank
    target = next(other for other in cluster.ranks if story.decode.endswith(f"/{other.group.name}/{other.number}"))
    return rank if target.dock.num_held else None


async def _begin_drain(cluster: FaultCluster, victim: Group, probe: Probe) -> Probe:
    victim.ranks[-1].living.send(signal.SIGTERM)

    def drains() -> bool:
        return not victim.is_up or all(rank.load is not None and rank.load.draining for rank in victim.ranks)

    try:
        await cluster.changes.until(drains, PHASE_S, f"{victim.name} drains")
    except TimeoutError as error:
        raise Missed(str(error)) from None
    if not victim.is_up or probe.call.ended_at is not None or any(r.living.code is not None for r in victim.ranks):
        raise Missed("it had drained before the fault")
    return probe
