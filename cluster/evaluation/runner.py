"""Runs instances through a served cluster over gRPC, and puts the results together."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio

from baleen.errors import BaleenError
from baleen.ids import new_request_id
from baleen.text.encoding_v32 import encode_messages
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from cluster.evaluation.grading import is_right
from cluster.evaluation.instances import TEXT, Instance

MAX_TOKENS = 192
REQUEST_TIMEOUT_S = 600.0
FORCE = 100.0
"""Bias that makes a token certain; log-probabilities are reported without it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for an instance."""

    instance: Instance
    text: str
    stopped: bool

    @property
    def right(self) -> bool:
        """Whether it ended by itself with a right answer."""
        return self.stopped and is_right(self.instance, self.text)


@dataclass(slots=True)
class Results:
    """right and asked: counts by family; ended: answers that ended by themselves; wrong: some answers to look at."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    wrong: list[Answer] = field(default_factory=list)
    perplexity: dict[str, float] = field(default_factory=dict)
    text_tokens: int = 0


class Evaluation:
    """One run against one cluster; at most `concurrency` requests at a time."""

    def __init__(self, channel: grpc.aio.Channel, *, concurrency: int) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._slots = asyncio.Semaphore(concurrency)

    async def run(self, instances: Sequence[Instance]) -> Results:
        """Ask and measure everything. Raises BaleenError where the cluster refuses."""
        results = Results()
        graded = [instance for instance in instances if instance.family != TEXT]
        try:
            for answer in await asyncio.gather(*(self._ask(instance) for instance in graded)):
                family = answer.instance.family
                results.asked[family] += 1
                results.right[family] += answer.right
                results.ended += answer.stopped
                if not answer.right:
                    results.wrong.append(answer)
            texts = [instance.expected.content for instance in instances if instance.family == TEXT]
            if texts:
                await self._perplexity(texts, results)
        except grpc.aio.AioRpcError as error:
            raise BaleenError(f"the cluster answers {error.code().name}: {error.details()}") from error
        return results

    async def _ask(self, instance: Instance) -> Answer:
        request = inference_pb2.GenerateRequest(
            text=encode_messages(instance.messages, thinking=instance.thinking),
            sampling=common_pb2.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0),
        )
        text, reason = "", common_pb2.FINISH_REASON_UNSPECIFIED
        async for delta in self._deltas(request):
            text += delta.text
            reason = delta.finish_reason or reason
        return Answer(instance, text, reason == common_pb2.FINISH_REASON_STOP)

    async def _perplexity(self, texts: Sequence[str], results: Results) -> None:
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
        async with self._slots:
            async for response in self._stub.Generate(request, timeout=REQUEST_TIMEOUT_S, wait_for_ready=True):
                if response.WhichOneof("event") == "delta":
                    yield response.delta
