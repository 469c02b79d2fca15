"""Processor time of the gateway's own code for each streamed token: no socket, no gRPC, no other process.

usage: python -m benchmarks.gateway_inside [--tokens 20000] [--streams 16] [--rounds 3]

Prints one JSON object: microseconds for each token of streamed chats, from the bytes of the router's message, which has
a token for each of the streams, to those of the events, the best of the rounds; `plain` without options, `thinking`
inside the reasoning, `logprobs` with two rivals, which takes the long way. Nothing of it waits, so a busy machine slows
it down but little.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from baleen.clock import SystemClock
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2
from router.gateway.batch import Batch, start_batch
from router.gateway.chat.answer import ChatShape, ChunkOptions
from router.gateway.chat.request import ChatLimits, read_ask
from router.gateway.connection import Connection
from router.gateway.engine import Engine
from router.gateway.line import Line
from router.gateway.models import ModelNames
from tests.support.tiny_tokenizer import tiny_tokenizer

BODIES: Mapping[str, dict[str, Any]] = {
    "plain": {"model": "deepseek-chat"},
    "thinking": {"model": "deepseek-reasoner"},
    "logprobs": {"model": "deepseek-chat", "logprobs": True, "top_logprobs": 2},
}


class _Router:
    """A stub whose one stream has its messages already: all are admitted, a token for each in each step, the end."""

    def __init__(self, token: inference_pb2.Delta, *, steps: int, streams: int) -> None:
        self._step = self._all(streams, delta=token)
        self._first = self._all(streams, admitted=inference_pb2.Admitted(request_id="x"))
        self._last = self._all(streams, finished=inference_pb2.Finished())
        self._messages = itertools.chain([self._first], itertools.repeat(self._step, steps), [self._last])
        self.go = asyncio.Event()

    def GenerateMany(self, requests: Any) -> _Router:
        """The stream."""
        return self

    async def read(self) -> inference_pb2.GenerateManyResponse | None:
        """The next message."""
        message = next(self._messages, None)
        if message is None:
            return None
        if message is not self._first:
            await self.go.wait()
            # as where it comes from a socket, others have their turn
            await asyncio.sleep(0)
        return inference_pb2.GenerateManyResponse.FromString(message)

    def cancel(self) -> None:
        """Nothing goes on."""

    @staticmethod
    def _all(streams: int, **news: Any) -> bytes:
        events = [inference_pb2.Event(number=number, **news) for number in range(streams)]
        return inference_pb2.GenerateManyResponse(events=events).SerializeToString()


async def once(name: str, *, steps: int, streams: int) -> float:
    """Seconds of the processor for so many steps."""
    tokenizer = Tokenizer(tiny_tokenizer())
    line: Any = None
    routers: Any = SimpleNamespace(pick=lambda: SimpleNamespace(line=line))
    engine = Engine(routers, tokenizer, FORMATS["deepseek-v3.2"], deadline_s=3600.0)
    body = {**BODIES[name], "messages": [{"role": "user", "content": "hi"}]}
    ask = await read_ask(body, engine, ModelNames("baleen"), ChatLimits(), max_context=1 << 20)
    delta = inference_pb2.Delta(text="the thing ", token_ids=tokenizer.encode("the")[:1])
    if ask.sampling.logprobs:
        top = [common_pb2.TokenLogprob(token_id=3, logprob=-1.0)] * ask.sampling.logprobs
        delta.logprobs.append(common_pb2.PositionLogprobs(logprob=-0.5, top=top))
    router: Any = _Router(delta, steps=steps, streams=streams)
    line = Line(router)

    async def send(message: Any) -> None:
        pass

    async def answer(running: Batch) -> None:
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
        async for pieces in running.pieces():
            if frames := [frame for piece in pieces for frame in shape.take(piece)]:
                await connection.events(frames)

    all_running = [start_batch(engine, [ask], request_id="", tenant="", traceparent="") for _ in range(streams)]
    await asyncio.gather(*(running.admitted() for running in all_running))
    begin = time.process_time()
    router.go.set()
    await asyncio.gather(*(answer(running) for running in all_running))
    seconds = time.process_time() - begin
    await line.close()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    steps = options.tokens // options.streams
    cells = {}
    for name in BODIES:
        rounds = [asyncio.run(once(name, steps=steps, streams=options.streams)) for _ in range(options.rounds)]
        cells[name] = round(1e6 * min(rounds) / (steps * options.streams), 2)
    print(json.dumps({"us_per_token": cells, "load_average": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
