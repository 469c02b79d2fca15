"""A router without ranks: a real gRPC server that answers prompts with texts that a test wrote, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from baleen.errors import BaleenError
from baleen.text.completion import CompletionText
from baleen.text.stop_strings import StopStrings
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import SERVER_OPTIONS
from router.client_session import ClientSession, Outlet, Terms
from tests.support.fake_scores import prompt_deltas

MAX_CONTEXT = 100_000

Reply = Callable[[str], str | BaleenError | None]
"""From the text of a prompt to what the model writes after it; None: nothing, and it does not end."""


class ScriptedRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Usable as an async context manager; `address` is set inside.

    prompts: texts that came. requests: as they came. cancelled: requests that were. num_deltas: that were taken.
    hold_after: tokens after which an answer waits for `go`. fail_after: tokens after which an answer fails, for
    `fail_reason`.
    """

    def __init__(self, tokenizer: Tokenizer, reply: Reply) -> None:
        self._tokenizer = tokenizer
        self.reply = reply
        self.prompts: list[str] = []
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.cancelled: list[str] = []
        self.num_deltas = 0
        self.hold_after: int | None = None
        self.fail_after: int | None = None
        self.fail_reason = common_pb2.FINISH_REASON_FAILED
        self.go = asyncio.Event()
        self.address = ""

    async def __aenter__(self) -> ScriptedRouter:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.stop(0.0)

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:
        model = inference_pb2.Model(
            id="baleen",
            max_context=MAX_CONTEXT,
            vocab_size=self._tokenizer.vocab_size,
            has_tokenizer=True,
            fingerprint="0123456789abcdef",
        )
        return inference_pb2.ListModelsResponse(models=[model])

    async def GenerateMany(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await ClientSession(self._serve).run(request_iterator, context.write)

    async def _serve(self, request: inference_pb2.GenerateRequest, terms: Terms, outlet: Outlet) -> None:
        try:
            await self._generate(request, outlet)
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise

    async def _generate(self, request: inference_pb2.GenerateRequest, outlet: Outlet) -> None:
        prompt = self._tokenizer.decode(request.token_ids.ids)
        self.requests.append(request)
        self.prompts.append(prompt)
        reply = self.reply(prompt)
        if isinstance(reply, BaleenError):
            raise reply
        await outlet.admitted(inference_pb2.Admitted(request_id=request.request_id))
        if reply is None:
            await asyncio.Event().wait()
            return
        for news in prompt_deltas(request):
            await outlet.delta(news)
        for index in range(max(1, request.sampling.n)):
            async for delta in self._deltas(request, self._tokenizer.encode(reply)):
                delta.index = index
                await outlet.delta(delta)
                self.num_deltas += 1

    async def _deltas(self, request: inference_pb2.GenerateRequest, token_ids: list[int]) -> Any:
        sampling = request.sampling
        text = CompletionText(self._tokenizer, StopStrings(sampling.stop) if sampling.stop else None)
        finish = common_pb2.FINISH_REASON_STOP
        if len(token_ids) >= sampling.max_tokens:
            token_ids, finish = token_ids[: sampling.max_tokens], common_pb2.FINISH_REASON_LENGTH
        for count, token_id in enumerate(token_ids):
            if count == self.hold_after:
                await self.go.wait()
            if count == self.fail_after:
                yield self._last(request, count, "", self.fail_reason)
                return
            piece = text.feed([token_id])
            delta = inference_pb2.Delta(text=piece.text, token_ids=[token_id])
            if sampling.HasField("logprobs"):
                top = [common_pb2.TokenLogprob(token_id=token_id, logprob=-0.25)] * sampling.logprobs
                delta.logprobs.append(common_pb2.PositionLogprobs(logprob=-0.25, top=top))
            if piece.hit is not None:
                delta.MergeFrom(self._last(request, count + 1, "", common_pb2.FINISH_REASON_STOP))
                yield delta
                return
            yield delta
        yield self._last(request, len(token_ids), text.finish().text, finish)

    def _last(self, request: inference_pb2.GenerateRequest, count: int, text: str, finish: Any) -> inference_pb2.Delta:
        prompt_tokens = len(request.token_ids.ids)
        usage = common_pb2.Usage(
            prompt_tokens=prompt_tokens, completion_tokens=count, cached_tokens=min(64, prompt_tokens - 1)
        )
        return inference_pb2.Delta(text=text, finish_reason=finish, usage=usage)
