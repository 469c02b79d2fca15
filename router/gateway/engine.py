"""The router as the gateway sees it: asks go there by gRPC, and come back as pieces of answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

import grpc.aio

from baleen.errors import BaleenError, DeadlineExceeded, NotReady
from baleen.text.chat_format import ChatFormat
from baleen.text.encoding_v32 import END_THINK
from baleen.text.output_events import Content, Event, ToolCallEnd
from baleen.text.output_parser import OutputParser
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.sampling import sampling_to_proto
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.forms import Forms
from router.gateway.line import Line, Strand
from router.gateway.refusal import Unkeepable

LONG_TEXT = 10_000
"""Characters from which on a text is tokenised beside the event loop."""

_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
}
_INTERRUPTED = "insufficient_system_resource"


class Engine:
    """Speaks to one router, for one event loop."""

    def __init__(self, router: str, tokenizer: Tokenizer, chat_format: ChatFormat, *, deadline_s: float) -> None:
        """router: its address. deadline_s: most time of a request."""
        self.tokenizer = tokenizer
        self.format = chat_format
        self.forms = Forms()
        self._channel = open_channel(router)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._line = Line(self._stub)
        self._deadline_s = deadline_s
        self._end_think = tokenizer.encode(END_THINK)

    async def close(self) -> None:
        """End the connection."""
        await self._line.close()
        await self._channel.close(None)

    async def model(self) -> inference_pb2.Model:
        """What the router says of its model. Raises NotReady if it has no rank yet, or does not answer."""
        try:
            answer = await self._stub.ListModels(inference_pb2.ListModelsRequest(), timeout=5.0)
        except grpc.aio.AioRpcError as error:
            raise NotReady(f"the router does not answer: {error.code().name}") from error
        model = answer.models[0]
        if not model.max_context:
            raise NotReady("no rank serves the model yet")
        return model

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text; long ones beside the event loop."""
        if len(text) < LONG_TEXT:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    def start(self, ask: Ask, *, request_id: str, tenant: str, traceparent: str = "") -> Running:
        """Begin: the router is asked. Whoever has the result must close it."""
        request = inference_pb2.GenerateRequest(
            request_id=request_id,
            token_ids=inference_pb2.TokenIds(ids=ask.prompt),
            sampling=sampling_to_proto(ask.sampling),
            priority=ask.priority,
            cache_salt=ask.cache_salt,
        )
        strand = self._line.start(request, tenant=tenant, traceparent=traceparent, deadline_s=self._deadline_s)
        return Running(strand, ask, self)

    def answer(self, ask: Ask) -> Answer:
        """What takes one of the answers apart."""
        parser = None
        if ask.thinking is not None:
            parser = self.format.parser(thinking=ask.thinking, tools=ask.tools)
        return Answer(ask, parser, self.tokenizer, self._end_think)


class Running:
    """One ask at the router, from its start to `close`."""

    def __init__(self, strand: Strand, ask: Ask, engine: Engine) -> None:
        self._strand = strand
        self._ask = ask
        self._answers = [engine.answer(ask) for _ in range(ask.sampling.n)]
        self._usage = TokenUsage(len(ask.prompt), 0, 0, 0)

    @property
    def usage(self) -> TokenUsage:
        """Tokens of all answers so far."""
        return self._usage

    async def admitted(self) -> None:
        """Wait until the router took the request. Raises what it refused it with."""
        await self._strand.admitted()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """News of the answers as they come, all that there are at a time. Raises what the router failed with."""
        await self._strand.admitted()
        while deltas := await self._strand.deltas():
            pieces: list[Piece] = []
            try:
                for delta in deltas:
                    pieces.append(self._piece(delta))
            except BaleenError:
                if pieces:
                    yield pieces
                raise
            yield pieces

    def close(self) -> None:
        """End it, if it has not ended: the ranks stop."""
        self._strand.close()

    def _piece(self, delta: inference_pb2.Delta) -> Piece:
        if delta.HasField("prompt_logprobs"):
            return Piece(
                index=delta.index,
                events=(),
                token_ids=(),
                logprobs=(),
                finish=None,
                usage=self._usage,
                prompt=delta.prompt_logprobs,
            )
        answer = self._answers[delta.index]
        before = self._usage
        num_tokens, num_reasoning = answer.count(delta.token_ids)
        self._usage = TokenUsage(
            before.prompt,
            max(before.cached, delta.usage.cached_tokens) if delta.HasField("usage") else before.cached,
            before.completion + num_tokens,
            before.reasoning + num_reasoning,
        )
        if delta.finish_reason == common_pb2.FINISH_REASON_DEAD_END:
            raise Unkeepable(f"the answer cannot keep to its form: {delta.detail}")
        piece = answer.take(delta, self._usage)
        if piece.finish == _INTERRUPTED and not self._usage.completion:
            raise _interruption(delta)
        return piece


class Answer:
    """One of the answers to an ask, as its tokens come."""

    def __init__(self, ask: Ask, parser: OutputParser | None, tokenizer: Tokenizer, end_think: list[int]) -> None:
        self._parser = parser
        self._tokenizer = tokenizer
        self._stops = ask.sampling.stop
        # a stop string ends in the last token; each token before is at least a byte of it
        self._last_ids: deque[int] = deque(maxlen=max((len(stop.encode()) for stop in self._stops), default=0) + 1)
        self._one_call = ask.one_call
        self._looks_for_calls = ask.tools
        self._end_think = end_think
        self._thinks = bool(ask.thinking)
        self._calls = 0
        self._begun: list[Event] = []
        if parser is not None and ask.opening:
            self._begun = parser.feed(ask.opening)

    def take(self, delta: inference_pb2.Delta, usage: TokenUsage) -> Piece:
        """The piece that a message of the router is, once its tokens are counted. usage: of all answers."""
        finish = _FINISH.get(delta.finish_reason, _INTERRUPTED) if delta.finish_reason else None
        events = self._events(delta.text, ended=finish is not None)
        if self._begun:
            events, self._begun = self._begun + events, []
        if self._looks_for_calls:
            self._calls += sum(isinstance(event, ToolCallEnd) for event in events)
        if finish == "stop" and self._calls:
            finish = "tool_calls"
        return Piece(
            index=delta.index,
            events=events,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish=finish,
            usage=usage,
            stopped_by=self._stop() if finish in ("stop", "tool_calls") else None,
        )

    def _events(self, text: str, *, ended: bool) -> list[Event]:
        if self._parser is None:
            return [Content(text)] if text else []
        events = self._parser.feed(text) if text else []
        if ended:
            events += self._parser.finish()
        return [event for event in events if self._is_wanted(event)] if self._one_call else events

    def _is_wanted(self, event: Event) -> bool:
        """Nothing but the first call, and what came before it."""
        index = getattr(event, "index", None)
        return index == 0 if index is not None else not (isinstance(event, Content) and self._calls)

    def _stop(self) -> str | None:
        """The stop string that the last token completed: the longest of them."""
        if not self._stops or not self._last_ids:
            return None
        last = self._last_ids[-1]
        text = self._tokenizer.decode(self._last_ids)
        old = len(text) - len(self._tokenizer.decode([last]))
        found = [stop for stop in self._stops if text.rfind(stop) >= 0 and text.rfind(stop) + len(stop) > old]
        return max(found, key=len, default=None)

    def count(self, token_ids: Sequence[int]) -> tuple[int, int]:
        """How many tokens these are, and how many of them are reasoning."""
        if self._stops:
            self._last_ids.extend(token_ids)
        num_reasoning = 0
        if self._thinks:
            for token_id in token_ids:
                num_reasoning += 1
                # where the tag is several tokens, its last one ends the reasoning
                if token_id == self._end_think[-1]:
                    self._thinks = False
                    break
        return len(token_ids), num_reasoning


def _interruption(delta: inference_pb2.Delta) -> BaleenError:
    message = delta.detail or "the request was interrupted"
    if delta.finish_reason == common_pb2.FINISH_REASON_DEADLINE:
        return DeadlineExceeded(message)
    return NotReady(message)
