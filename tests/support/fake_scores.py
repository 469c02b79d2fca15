"""Log-probabilities of prompts without a model: a function of the tokens up to each place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from zlib import crc32

from baleen.blocks import BLOCK_TOKENS, shareable_blocks
from baleen.v1 import common_pb2, inference_pb2, worker_pb2


def fake_score(token_ids: Sequence[int], place: int) -> float:
    """What fakes say of the token at `place`; exact as a float32."""
    return -(1 + crc32(repr(list(token_ids[: place + 1])).encode()) % 64) / 4


def fake_scores(token_ids: Sequence[int], start: int, end: int, num_top: int) -> common_pb2.PromptLogprobs:
    """Of places `start` to `end` - 1; the rivals are tokens 7, 8 and so on, each half as likely as the one before."""
    return common_pb2.PromptLogprobs(
        position=start,
        logprobs=[fake_score(token_ids, place) for place in range(start, end)],
        top_token_ids=[7 + rank for rank in range(num_top)] * (end - start),
        top_logprobs=[-1.0 - rank for rank in range(num_top)] * (end - start),
    )


def say_scores(
    out: asyncio.Queue[worker_pb2.SessionResponse | None],
    message: worker_pb2.Submit | worker_pb2.Prefill,
    *,
    most: int,
) -> None:
    """Report the prompt of a message that asks for it, in two steps, at most so many places of it."""
    if isinstance(message, worker_pb2.Prefill):
        asks, end = message, shareable_blocks(len(message.token_ids)) * BLOCK_TOKENS + 1
    else:
        asks, end = message.sampling, len(message.token_ids) - message.num_delivered
    if not asks.HasField("prompt_logprobs"):
        return
    start = max(1, message.prompt_logprobs_from)
    end = min(end, start + most)
    for first, last in ((start, (start + end) // 2), ((start + end) // 2, end)):
        if first < last:
            logprobs = fake_scores(message.token_ids, first, last, asks.prompt_logprobs)
            report = worker_pb2.PromptReport(request_id=message.request_id, logprobs=logprobs)
            out.put_nowait(worker_pb2.SessionResponse(step_report=worker_pb2.StepReport(prompts=[report])))


def prompt_deltas(request: inference_pb2.GenerateRequest) -> Iterator[inference_pb2.Delta]:
    """News of the prompt of a request that asks for them, some places at a time."""
    if request.sampling.HasField("prompt_logprobs"):
        token_ids, num_top = list(request.token_ids.ids), request.sampling.prompt_logprobs
        for start in range(1, len(token_ids), 3):
            scores = fake_scores(token_ids, start, min(start + 3, len(token_ids)), num_top)
            yield inference_pb2.Delta(prompt_logprobs=scores)
