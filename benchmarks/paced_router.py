"""A router that was given its answers beforehand, and sends them at the pace of ranks that step: for measurements."""

from __future__ import annotations

import asyncio
import itertools
from multiprocessing.connection import Connection
from typing import Any

import grpc.aio
import uvloop

from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import SERVER_OPTIONS
from router.client_session import ClientSession, Outlet, Terms
from router.service import CallOutlet

TEXT = "the thing "
"""Of each token."""


class Ranks:
    """Pacers of a router's requests: those of one rank go on at the same time."""

    def __init__(self, count: int) -> None:
        self._steps: dict[tuple[int, float], asyncio.Future[None]] = {}
        self._numbers = itertools.cycle(range(count))

    def next(self) -> int:
        """Which one a new request is for."""
        return next(self._numbers)

    async def step(self, rank: int, gap_s: float) -> None:
        """Wait for the rank's next step."""
        loop, key = asyncio.get_running_loop(), (rank, gap_s)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = loop.create_future()
            loop.call_later(gap_s, lambda: self._steps.pop(key).set_result(None))
        await asyncio.shield(step)


class PacedRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Has its answers ready; the gap between two tokens in ms stands in top_k."""

    def __init__(self, token_ids: list[int], ranks: int) -> None:
        usage = common_pb2.Usage(prompt_tokens=1, cached_tokens=0)
        self._token = inference_pb2.Delta(text=TEXT, token_ids=token_ids)
        self._first = inference_pb2.Delta(text=TEXT, token_ids=token_ids, usage=usage)
        self._last = inference_pb2.Delta(finish_reason=common_pb2.FINISH_REASON_LENGTH, usage=usage)
        self._ranks = Ranks(ranks)

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:  # type: ignore[override]
        """One request."""
        await self._serve(request, None, CallOutlet(context))

    async def GenerateMany(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Many."""
        await ClientSession(self._serve).run(request_iterator, context.write)

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # type: ignore[override]
        """The one model."""
        model = inference_pb2.Model(
            id="baleen", max_context=1 << 20, vocab_size=300, has_tokenizer=True, fingerprint="f"
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def _serve(self, request: inference_pb2.GenerateRequest, terms: Terms | None, outlet: Outlet) -> None:
        rank, gap_s = self._ranks.next(), request.sampling.top_k / 1e3
        await outlet.admitted(inference_pb2.Admitted(request_id="x"))
        for place in range(request.sampling.max_tokens):
            await self._ranks.step(rank, gap_s)
            await outlet.delta(self._token if place else self._first)
        await outlet.delta(self._last)


def router_process(pipe: Connection, token_ids: list[int], ranks: int) -> None:
    """Such a router, until the pipe says something."""

    async def serve() -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(PacedRouter(token_ids, ranks), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await asyncio.to_thread(pipe.recv)
        await server.stop(0.0)

    uvloop.run(serve())
