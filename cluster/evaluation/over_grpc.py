"""Instances asked over gRPC: text in, text out, and log-probabilities of single tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from baleen.errors import BaleenError
from baleen.ids import new_request_id
from baleen.text.encoding_v32 import encode_messages
from baleen.text.parsing_v32 import MalformedCompletion, parse_completion
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from cluster.evaluation.instances import Instance
from cluster.evaluation.runner import MAX_TOKENS, REQUEST_TIMEOUT_S, Answer, Results

FORCE = 100.0
"""Bias that makes a token certain; log-probabilities are reported without it."""


class OverGrpc:
    """See runner.Way; at most `concurrency` requests at a time."""

    def __init__(self, channel: grpc.aio.Channel, *, concurrency: int) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._slots = asyncio.Semaphore(concurrency)

    async def ask(self, instance: Instance) -> Answer:
        """See runner.Way."""
        request = inference_pb2.GenerateRequest(
            text=encode_messages(instance.messages, thinking=instance.thinking),
            sampling=common_pb2.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
        )
        text, reason = "", common_pb2.FINISH_REASON_UNSPECIFIED
        async for delta in self._deltas(request):
            text += delta.text
            reason = delta.finish_reason or reason
        try:
            got = parse_completion(text, thinking=instance.thinking)
        except MalformedCompletion:
            got = None
        return Answer(instance, text, got, reason == common_pb2.FINISH_REASON_STOP)

    async def perplexity(self, texts: Sequence[str], results: Results) -> None:
        """Perplexity of texts, computed anew (cold) and with all but the last tokens cached (warm).

        Each token is asked for on its own, after those before it: its log-probability is the model's, and the prompt
        takes the way of every prompt, through prefill, transfer and decode.
        """
        salt = new_request_id()
        for name, salts in (("cold", True), ("warm", False)):
            values: list[float] = []
            for number, text in enumerate(texts):
                ids = list((await self._stub.Tokenize(inference_pb2.TokenizeRequest(text=text))).token_ids)
                places = range(1, len(ids))
                found = await asyncio.gather(
                    *(
                        self._logprob(ids[:place], ids[place], f"{salt}-{number}" + (f"-{place}" if salts else ""))
                        for place in places
                    )
                )
                values += found
            results.perplexity[name] = math.exp(-sum(values) / len(values))
            results.text_tokens = len(values)

    async def _logprob(self, prompt: Sequence[int], token_id: int, salt: str) -> float:
        """The model's log-probability of one token after a prompt."""
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=prompt),
            sampling=common_pb2.SamplingParams(
                max_tokens=1, temperature=0.0, logprobs=0, logit_bias={token_id: FORCE}, ignore_eos=True
            ),
            cache_salt=salt,
            omit_text=True,
        )
        found: list[tuple[int, float]] = []
        async for delta in self._deltas(request):
            found += zip(delta.token_ids, (entry.logprob for entry in delta.logprobs), strict=True)
        if [token for token, _ in found] != [token_id]:
            raise BaleenError(f"token {token_id} was asked for, and {[token for token, _ in found]} came")
        return found[0][1]

    async def _deltas(self, request: inference_pb2.GenerateRequest) -> AsyncIterator[inference_pb2.Delta]:
        try:
            async with self._slots:
                async for response in self._stub.Generate(request, timeout=REQUEST_TIMEOUT_S, wait_for_ready=True):
                    if response.WhichOneof("event") == "delta":
                        yield response.delta
        except grpc.aio.AioRpcError as error:
            raise BaleenError(f"the cluster answers {error.code().name}: {error.details()}") from error
