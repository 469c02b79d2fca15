"""Golden prompts over gRPC to a router, and what the router says about how they were served."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel

CALL_TIMEOUT_S = 120.0
_OUTCOME = re.compile(
    r"\((\d+) cached on the decode rank, (\d+) on the prefill rank, (\d+) fetched from another\), .* (\d+) attempts"
)


@dataclass(slots=True)
class Served:
    """One answer: tokens, log-probabilities and end by completion. Cached tokens by source, as Explain counts them.

    story: what happened on the way. chosen: ranks, the decode rank last. seen: ranks that the router knew of.
    """

    token_ids: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    logprobs: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    finish: dict[int, int] = field(default_factory=dict)
    cached: int = 0
    on_decode: int = 0
    on_prefill: int = 0
    fetched: int = 0
    attempts: int = 0
    story: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def require_golden(self, case: dict[str, Any]) -> None:
        """Every completion has the tokens and log-probabilities of the golden file, and the end that was asked for."""
        for index, finish in self.finish.items():
            assert self.token_ids[index] == case["greedy"], (len(case["prompt"]), index, self.story)
            assert finish == common_pb2.FINISH_REASON_LENGTH
            if "greedy_logprobs" in case:
                assert self.logprobs[index] == pytest.approx(case["greedy_logprobs"], abs=1e-3)


class GoldenClient:
    """A client of one router."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def case(self, case: dict[str, Any], *, copies: int = 1, **fields: Any) -> Served:
        """One golden case from its prompt to its last token, as so many completions. fields: of the request."""
        count = len(case["greedy"])
        sampling = common_pb2.SamplingParams(
            max_tokens=count,
            min_tokens=0 if case["ignore_eos"] else count,
            ignore_eos=case["ignore_eos"],
            temperature=0.0,
            logprobs=0,
            n=copies,
        )
        return await self.generate(case["prompt"], sampling, **fields)

    async def generate(
        self,
        prompt: list[int],
        sampling: common_pb2.SamplingParams,
        *,
        begun: asyncio.Event | None = None,
        **fields: Any,
    ) -> Served:
        """Any request until all its completions have ended, and its explanation. begun: set with the first token."""
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt), sampling=sampling, omit_text=True, **fields
        )
        served, request_id = Served(), ""
        async for message in self._stub.Generate(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True):
            request_id = request_id or message.admitted.request_id
            delta = message.delta
            if delta.token_ids and begun is not None:
                begun.set()
            served.token_ids[delta.index] += delta.token_ids
            served.logprobs[delta.index] += [entry.logprob for entry in delta.logprobs]
            if delta.finish_reason:
                served.finish[delta.index] = delta.finish_reason
                served.cached = delta.usage.cached_tokens
        assert len(served.finish) == (sampling.n or 1)
        story = await self._stub.Explain(inference_pb2.ExplainRequest(request_id=request_id))
        found = _OUTCOME.search(story.outcome)
        assert found is not None, story.outcome
        served.on_decode, served.on_prefill, served.fetched, served.attempts = map(int, found.groups())
        served.story = [milestone.event for milestone in story.milestones]
        served.chosen = [decision.chosen for decision in story.decisions]
        served.seen = {candidate.rank for decision in story.decisions for candidate in decision.candidates}
        return served


@asynccontextmanager
async def golden_client(address: str) -> AsyncIterator[GoldenClient]:
    """A client of the router at `address`."""
    async with open_channel(address) as channel:
        yield GoldenClient(inference_pb2_grpc.InferenceServiceStub(channel))
