"""One answer in the Messages dialect: the events of its stream, and the message that they make up.

Content blocks follow each other: thinking, text, tool_use. A call that turned out malformed stays in a stream as a
block whose input is no JSON, and is no part of the whole message: its text is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from baleen.text.output_events import Content, Event, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

Json = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessageAnswer:
    """Builds one message. Every method returns the events to send, in order."""

    def __init__(self, model: str, usage: Mapping[str, Any], new_id: Callable[[str], str]) -> None:
        """usage: as far as it is known at the beginning. new_id: an id that begins with the given text."""
        self._new_id = new_id
        self._message: Json = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": dict(usage),
        }
        self._num_blocks = 0
        self._open: Json | None = None
        self._pieces: list[str] = []
        self._blocks: list[Json] = []

    def start(self) -> list[Json]:
        """The message begins."""
        return [{"type": "message_start", "message": self.message()}, {"type": "ping"}]

    def feed(self, events: Iterable[Event]) -> list[Json]:
        """What the model wrote."""
        out: list[Json] = []
        for event in events:
            match event:
                case Reasoning(text):
                    out += self._text(text, "thinking")
                case Content(text):
                    out += self._text(text, "text")
                case ToolCallStart():
                    block = {"type": "tool_use", "id": self._new_id("toolu_"), "name": event.name, "input": {}}
                    out += [*self._close(), self._begin(block | {"caller": {"type": "direct"}})]
                case ToolCallArguments():
                    out.append(
                        self._delta({"type": "input_json_delta", "partial_json": event.fragment}, event.fragment)
                    )
                case ToolCallEnd():
                    out += self._close(complete=True)
        return out

    def finish(self, reason: str, usage: Mapping[str, Any], stop_sequence: str | None = None) -> list[Json]:
        """The model ended. reason: as in chat completions. stop_sequence: the one that ended the text, if one did."""
        out: list[Json] = []
        if not self._num_blocks:
            out.append(self._begin(_block("text")))
        out += self._close()
        stop_reason = "stop_sequence" if stop_sequence is not None else _STOP_REASONS.get(reason, "end_turn")
        self._message |= {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        self._message["usage"] |= usage
        delta = {key: self._message[key] for key in ("stop_reason", "stop_sequence", "stop_details", "container")}
        out.append({"type": "message_delta", "delta": delta, "usage": dict(usage)})
        return [*out, {"type": "message_stop"}]

    def message(self) -> Json:
        """The message as it stands; a whole answer has at least one block."""
        return self._message | {"content": list(self._blocks)}

    def _text(self, text: str, kind: str) -> list[Json]:
        out: list[Json] = []
        if self._open is None or self._open["type"] != kind:
            out += [*self._close(), self._begin(_block(kind))]
        if kind == "text":
            return [*out, self._delta({"type": "text_delta", "text": text}, text)]
        return [*out, self._delta({"type": "thinking_delta", "thinking": text}, text)]

    def _begin(self, block: Json) -> Json:
        self._open, self._pieces = block, []
        self._num_blocks += 1
        return {"type": "content_block_start", "index": self._num_blocks - 1, "content_block": dict(block)}

    def _delta(self, delta: Json, text: str) -> Json:
        self._pieces.append(text)
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _close(self, *, complete: bool = False) -> list[Json]:
        """End the open block, if there is one. complete: it is a call that is whole."""
        block, self._open = self._open, None
        if block is None:
            return []
        out: list[Json] = []
        text = "".join(self._pieces)
        if block["type"] != "tool_use":
            self._blocks.append(block | {block["type"]: text})
        elif complete:
            self._blocks.append(block | {"input": json.loads(text, parse_int=_integer)})
        if block["type"] == "thinking":
            out.append(self._delta({"type": "signature_delta", "signature": ""}, ""))
        return [*out, {"type": "content_block_stop", "index": self._num_blocks - 1}]


def _block(kind: str) -> Json:
    if kind == "text":
        return {"type": "text", "text": "", "citations": None}
    return {"type": "thinking", "thinking": "", "signature": ""}


def _integer(digits: str) -> int | str:
    """An integer, or its digits if they are more than Python reads."""
    return int(digits) if len(digits) <= 4000 else digits
