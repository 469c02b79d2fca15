"""A router with its ranks and a client, in one event loop, over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from baleen.telemetry import Log
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.errors import error_from_rpc
from router.config import RouterProcessConfig
from router.main import Router
from router.policy.snapshot import Parameters
from tests.support.fake_rank import FakeRank

PROMPT = list(range(10, 10 + 200))

NO_SHORT_CUT = Parameters(short_tail_tokens=0)
"""Every prompt of more than a block is prefilled elsewhere."""


@dataclass(eq=False)
class Answer:
    """What a client got: by completion tokens, text, finish; of the prompt all together; the messages as they came."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    finish: dict[int, int] = field(default_factory=dict)
    usage: dict[int, common_pb2.Usage] = field(default_factory=dict)
    prompt: common_pb2.PromptLogprobs = field(default_factory=lambda: common_pb2.PromptLogprobs(position=1))
    deltas: list[inference_pb2.Delta] = field(default_factory=list)
    request_id: str = ""

    def take(self, message: inference_pb2.GenerateResponse) -> None:
        if message.WhichOneof("event") == "admitted":
            assert not self.request_id, "admitted twice"
            self.request_id = message.admitted.request_id
            return
        assert self.request_id, "a delta before admitted"
        delta = message.delta
        assert delta.index not in self.finish, "news after the end"
        self.deltas.append(delta)
        if delta.HasField("prompt_logprobs"):
            assert not any(self.tokens.values()), "news of the prompt after a token"
            assert delta.prompt_logprobs.position == self.prompt.position + len(self.prompt.logprobs)
            self.prompt.MergeFrom(
                common_pb2.PromptLogprobs(
                    logprobs=delta.prompt_logprobs.logprobs,
                    top_token_ids=delta.prompt_logprobs.top_token_ids,
                    top_logprobs=delta.prompt_logprobs.top_logprobs,
                )
            )
            return
        self.tokens.setdefault(delta.index, []).extend(delta.token_ids)
        self.text[delta.index] = self.text.get(delta.index, "") + delta.text
        if delta.finish_reason:
            self.finish[delta.index] = delta.finish_reason
            self.usage[delta.index] = delta.usage


@dataclass(eq=False)
class Caller:
    """A client of one router, wherever it runs."""

    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    address: str

    def call(self, request: inference_pb2.GenerateRequest, **options: Any) -> Any:
        return self.stub.Generate(request, **options)

    async def generate(self, request: inference_pb2.GenerateRequest, **options: Any) -> Answer:
        answer = Answer()
        async for message in self.call(request, **options):
            answer.take(message)
        return answer

    async def explain(self, request_id: str) -> inference_pb2.ExplainResponse:
        return await self.stub.Explain(inference_pb2.ExplainRequest(request_id=request_id))


def request(
    prompt: Sequence[int] | str, *, max_tokens: int = 8, request_id: str = "", **sampling: Any
) -> inference_pb2.GenerateRequest:
    """Greedy unless told otherwise, with seed 0, on which the tokens of fake ranks depend."""
    sampling.setdefault("temperature", 0.0)
    sampling.setdefault("seed", 0)
    message = inference_pb2.GenerateRequest(
        request_id=request_id, sampling=common_pb2.SamplingParams(max_tokens=max_tokens, **sampling)
    )
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.ids.extend(prompt)
    return message


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait until `condition` holds. The timeout only bounds the wait."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (conditions of many kinds, most of which nothing announces)
            await asyncio.sleep(0.005)


@dataclass(eq=False)
class Client(Caller):
    """A client of a router in the same event loop."""

    router: Router


@contextlib.asynccontextmanager
async def router_with(
    ranks: Sequence[FakeRank], *, model: Path | None = None, log: Log | None = None, **config: Any
) -> AsyncIterator[Client]:
    """A router that knows these ranks, which are started here, by their addresses."""
    async with contextlib.AsyncExitStack() as stack:
        for rank in ranks:
            await stack.enter_async_context(rank)
        router = Router(
            RouterProcessConfig(
                ranks=",".join(rank.info.address for rank in ranks),
                model=str(model) if model else "",
                **{"listen": "127.0.0.1:0", **config},
            ),
            log=log or Log("off"),
        )
        address = await router.start()
        stack.push_async_callback(router.stop, 0.0)
        channel = open_channel(address)
        stack.push_async_callback(channel.close, None)
        await eventually(lambda: len(router.members.snapshot().ranks) == len(ranks))
        yield Client(inference_pb2_grpc.InferenceServiceStub(channel), address, router)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """A test, in an event loop of its own, for at most a minute."""
    asyncio.run(asyncio.wait_for(coroutine, 60))


def in_turn(ranks: Sequence[FakeRank]) -> list[FakeRank]:
    """Ranks in the order in which round_robin takes them."""
    return sorted(ranks, key=lambda rank: rank.info.incarnation)


def held_tickets(rank: FakeRank) -> set[str]:
    """Reservations that nobody used or gave back."""
    given = {f"ticket-{number + 1}" for number in range(len(rank.reserves))}
    used = {message.ticket for message in (*rank.submits, *rank.prefills)}
    return given - set(rank.released) - used


async def at_rest(*ranks: FakeRank) -> None:
    """All of them hold nothing any more: no request, no held prefill, no reservation."""
    await eventually(
        lambda: all(not rank.num_running and not rank._held_prefills and not held_tickets(rank) for rank in ranks)
    )


def status_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    """Code and reason of a failed call."""
    return error.code(), type(error_from_rpc(error)).__name__
