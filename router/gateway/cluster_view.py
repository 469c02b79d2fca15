"""What operators see through the gateway: its routers and their ranks, and which ranks served a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio

from baleen.errors import UnknownName
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc, router_pb2, router_pb2_grpc

ASK_TIMEOUT_S = 2.0


async def cluster(routers: Sequence[tuple[str, grpc.aio.Channel]]) -> dict[str, Any]:
    """The state of every router (address, channel), each with the ranks that it knows, or with why it is silent."""
    return {"object": "cluster", "routers": await asyncio.gather(*(_router(*one) for one in routers))}


async def served_by(request_id: str, channels: Sequence[grpc.aio.Channel]) -> dict[str, Any]:
    """The ranks chosen for a request, in order. Raises UnknownName if no router remembers it."""
    asked = inference_pb2.ExplainRequest(request_id=request_id)
    answers = await asyncio.gather(
        *(
            inference_pb2_grpc.InferenceServiceStub(channel).Explain(asked, timeout=ASK_TIMEOUT_S)
            for channel in channels
        ),
        return_exceptions=True,
    )
    for answer in answers:
        if isinstance(answer, inference_pb2.ExplainResponse):
            ranks = [
                {"role": common_pb2.Role.Name(one.role).removeprefix("ROLE_").lower(), "rank": one.chosen}
                for one in answer.decisions
                if one.chosen
            ]
            return {"object": "request", "id": request_id, "outcome": answer.outcome, "ranks": ranks}
    raise UnknownName(f"no router remembers a request {request_id!r}")


async def _router(address: str, channel: grpc.aio.Channel) -> dict[str, Any]:
    try:
        told = await router_pb2_grpc.RouterServiceStub(channel).GetStatus(
            router_pb2.GetStatusRequest(), timeout=ASK_TIMEOUT_S
        )
    except grpc.aio.AioRpcError as error:
        return {"address": address, "error": f"gives no answer ({error.code().name})"}
    numbers = ("num_ranks", "num_active", "num_queued", "queued_tokens", "num_admitted", "num_shed", "num_expired")
    return {
        "address": address,
        "policy": told.policy,
        "leaving": told.leaving,
        **{name: getattr(told, name) for name in (*numbers, "prompt_tokens", "cached_prompt_tokens")},
        "ranks": [_rank(one) for one in told.ranks],
    }


def _rank(told: router_pb2.RankSummary) -> dict[str, Any]:
    return {
        "pool": told.pool,
        "group": told.group,
        "rank": told.rank,
        "role": told.role,
        "draining": told.draining,
        "num_running": told.num_running,
        "num_waiting": told.num_waiting,
        "total_blocks": told.total_blocks,
        "free_blocks": told.free_blocks,
    }
