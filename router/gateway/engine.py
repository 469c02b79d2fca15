"""What the gateway's endpoints ask of the routers: what is served, token ids, and answers, which come in pieces."""

from __future__ import annotations

import asyncio

import grpc.aio

from baleen.errors import NotReady
from baleen.text.chat_format import ChatFormat
from baleen.text.encoding_v32 import END_THINK
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import inference_pb2
from router.gateway.answer import Answer
from router.gateway.ask import Ask
from router.gateway.forms import Forms
from router.gateway.routers import Routers
from router.gateway.running import Running

LONG_TEXT = 10_000
"""Characters from which on a text is tokenised beside the event loop."""


class Engine:
    """Speaks to the routers, for one event loop."""

    def __init__(self, routers: Routers, tokenizer: Tokenizer, chat_format: ChatFormat, *, deadline_s: float) -> None:
        """deadline_s: most time of a request."""
        self.tokenizer = tokenizer
        self.format = chat_format
        self.forms = Forms()
        self.routers = routers
        self._deadline_s = deadline_s
        self._end_think = tokenizer.encode(END_THINK)

    async def model(self) -> inference_pb2.Model:
        """What the first router that knows one says of its model. Raises NotReady if none has a rank, or answers."""
        failure = NotReady("there is no router")
        for link in self.routers.by_hope():
            try:
                answer = await link.stub.ListModels(inference_pb2.ListModelsRequest(), timeout=5.0)
            except grpc.aio.AioRpcError as error:
                failure = NotReady(f"the router at {link.address} does not answer: {error.code().name}")
                continue
            model = answer.models[0]
            if model.max_context:
                return model
            failure = NotReady("no rank serves the model yet")
        raise failure

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text; long ones beside the event loop."""
        if len(text) < LONG_TEXT:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    def start(self, ask: Ask, *, request_id: str, tenant: str, traceparent: str = "") -> Running:
        """Begin: a router is asked, as soon as one answers. Whoever has the result must close it."""
        answers = [self._answer(ask) for _ in range(ask.sampling.n)]
        return Running(
            self.routers,
            ask,
            answers,
            request_id=request_id,
            tenant=tenant,
            traceparent=traceparent,
            deadline_s=self._deadline_s,
        )

    def _answer(self, ask: Ask) -> Answer:
        parser = None
        if ask.thinking is not None:
            parser = self.format.parser(thinking=ask.thinking, tools=ask.tools)
        return Answer(ask, parser, self.tokenizer, self._end_think)
