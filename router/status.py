"""The part of a router that operators ask: its queue, its decisions so far, its hit rate."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from baleen.reports import RankInfo
from baleen.v1 import router_pb2, router_pb2_grpc
from router.metrics import Parts
from router.policy.snapshot import RankView


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """`baleen.v1.RouterService` of one router."""

    def __init__(self, parts: Parts, *, policy: str, is_leaving: Callable[[], bool]) -> None:
        """metrics_address is to be set once it is known."""
        self._parts = parts
        self._policy = policy
        self._is_leaving = is_leaving
        self.metrics_address = ""

    async def GetStatus(
        self,
        request: router_pb2.GetStatusRequest,
        context: grpc.aio.ServicerContext[router_pb2.GetStatusRequest, router_pb2.GetStatusResponse],
    ) -> router_pb2.GetStatusResponse:
        """All figures, as of now."""
        parts = self._parts
        counts, tokens = parts.admission.counts, parts.meters.prompt_tokens
        return router_pb2.GetStatusResponse(
            policy=self._policy,
            metrics_address=self.metrics_address,
            leaving=self._is_leaving(),
            num_ranks=len(parts.members.snapshot().ranks),
            num_queued=len(parts.admission),
            queued_tokens=parts.admission.waiting_tokens,
            num_active=parts.proxy.num_active - len(parts.admission),
            num_admitted=counts.admitted,
            num_shed=counts.shed,
            num_expired=counts.expired,
            prompt_tokens=tokens.total(),
            cached_prompt_tokens=tokens.total() - tokens[("computed",)],
            retry_budget=parts.retries.left,
            ranks=[_summary(view, parts.members.info(view.incarnation)) for view in parts.members.snapshot().ranks],
        )


def _summary(view: RankView, info: RankInfo | None) -> router_pb2.RankSummary:
    return router_pb2.RankSummary(
        pool=view.pool,
        group=view.group,
        rank=info.rank if info is not None else 0,
        role=view.role,
        draining=view.draining,
        num_running=view.num_running,
        num_waiting=view.num_waiting,
        total_blocks=view.total_blocks,
        free_blocks=view.free_blocks,
    )
