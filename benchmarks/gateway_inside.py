"""Processor time of the gateway's own code for each streamed token: no socket, no gRPC, no other process.

usage: python -m benchmarks.gateway_inside [--tokens 20000] [--rounds 3]

Prints one JSON object: microseconds for each token of a streamed chat, from the bytes of the router's message to those
of the event, the best of the rounds; `plain` without options, `thinking` inside the reasoning, `logprobs` with two
rivals, which takes the long way. Nothing of it waits, so a busy machine slows it down but little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from baleen.clock import SystemClock
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2
from router.gateway.batch import Batch
from router.gateway.chat.answer import ChatShape, ChunkOptions
from router.gateway.chat.request import ChatLimits, read_ask
from router.gateway.connection import Connection
from router.gateway.engine import Engine, Running
from router.gateway.models import ModelNames
from tests.support.tiny_tokenizer import tiny_tokenizer

BODIES: Mapping[str, dict[str, Any]] = {
    "plain": {"model": "deepseek-chat"},
    "thinking": {"model": "deepseek-reasoner"},
    "logprobs": {"model": "deepseek-chat", "logprobs": True, "top_logprobs": 2},
}


class _Call:
    """A call of the router that has all its messages already."""

    def __init__(self, message: bytes, count: int) -> None:
        self._message = message
        self._left = count + 1
        self._count = count

    async def read(self) -> inference_pb2.GenerateResponse | None:
        """The next message."""
        self._left -= 1
        if self._left == self._count:
            return inference_pb2.GenerateResponse(admitted=inference_pb2.Admitted(request_id="x"))
        return inference_pb2.GenerateResponse.FromString(self._message) if self._left >= 0 else None

    def cancel(self) -> None:
        """Nothing goes on."""


async def once(name: str, tokens: int) -> float:
    """Seconds of the processor for so many tokens."""
    tokenizer = Tokenizer(tiny_tokenizer())
    engine = Engine("127.0.0.1:1", tokenizer, FORMATS["deepseek-v3.2"], deadline_s=10.0)
    body = {**BODIES[name], "messages": [{"role": "user", "content": "hi"}]}
    ask = await read_ask(body, engine, ModelNames("baleen"), ChatLimits(), max_context=1 << 20)
    delta = inference_pb2.Delta(text="the thing ", token_ids=tokenizer.encode("the")[:1])
    if ask.sampling.logprobs:
        top = [common_pb2.TokenLogprob(token_id=3, logprob=-1.0)] * ask.sampling.logprobs
        delta.logprobs.append(common_pb2.PositionLogprobs(logprob=-0.5, top=top))
    message = inference_pb2.GenerateResponse(delta=delta).SerializeToString()

    async def send(message: Any) -> None:
        pass

    running = Batch([Running(_Call(message, tokens), ask, engine)], [1])
    shape = ChatShape(
        ask,
        tokenizer,
        answer_id="chatcmpl-0123456789abcdef01234567",
        created=1_800_000_000,
        fingerprint="fp_0123456789abcdef",
        options=ChunkOptions(),
        stream=True,
    )
    connection = Connection(send, SystemClock())
    await connection.start(200, [])
    await running.admitted()
    begin = time.process_time()
    async for piece in running.pieces():
        if frames := shape.take(piece):
            await connection.events(frames)
    seconds = time.process_time() - begin
    await engine.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cells = {
        name: round(
            min(1e6 * asyncio.run(once(name, options.tokens)) / options.tokens for _ in range(options.rounds)), 2
        )
        for name in BODIES
    }
    print(json.dumps({"us_per_token": cells, "load_average": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
