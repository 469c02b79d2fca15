"""One of the answers to an ask: what its tokens and text say, piece by piece."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

from baleen.text.output_events import Content, Event, ToolCallEnd
from baleen.text.output_parser import OutputParser
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2
from router.gateway.ask import Ask, Piece, TokenUsage

_FINISH = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
}
INTERRUPTED = "insufficient_system_resource"


class Answer:
    """One of the answers to an ask, as its tokens come. token_ids: all so far. has_ended: its last piece is taken."""

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
        self.token_ids = array("I")
        self.has_ended = False
        self._begun: list[Event] = []
        if parser is not None and ask.opening:
            self._begun = parser.feed(ask.opening)

    def take(self, index: int, delta: inference_pb2.Delta, usage: TokenUsage) -> Piece:
        """The piece that a message of a router is, once its tokens are counted. index: its own. usage: of all."""
        finish = None
        if delta.finish_reason:
            finish, self.has_ended = _FINISH.get(delta.finish_reason, INTERRUPTED), True
        events = self._events(delta.text, ended=finish is not None)
        if self._begun:
            events, self._begun = self._begun + events, []
        if self._looks_for_calls:
            self._calls += sum(isinstance(event, ToolCallEnd) for event in events)
        if finish == "stop" and self._calls:
            finish = "tool_calls"
        return Piece(
            index=index,
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
        self.token_ids.extend(token_ids)
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
