"""One answer in the Responses dialect: the events of its stream, and the response object that they make up.

Items follow each other: reasoning, a message, a function call; each begins where the model turns to it. A call that
turned out malformed ends as incomplete in the stream, and is no part of the final response: its text is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from baleen.text.output_events import Content, Event, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart

Json = dict[str, Any]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseAnswer:
    """Builds one response. Every method returns the events to send, in order, numbered."""

    def __init__(self, response: Mapping[str, Any], new_id: Callable[[str], str]) -> None:
        """response: the response object before anything is generated. new_id: an id that begins with the given text."""
        self._response = dict(response)
        self._new_id = new_id
        self._number = 0
        self._num_items = 0
        self._open: Json | None = None
        self._pieces: list[str] = []
        self._done: list[Json] = []

    def start(self) -> list[Json]:
        """The response exists and works."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def feed(self, events: Iterable[Event]) -> list[Json]:
        """What the model wrote."""
        out: list[Json] = []
        for event in events:
            match event:
                case Reasoning(text):
                    out += self._text(text, "reasoning", "response.reasoning_text")
                case Content(text):
                    out += self._text(text, "message", "response.output_text")
                case ToolCallStart():
                    out += self._close() + self._begin_call(event.name)
                case ToolCallArguments():
                    out.append(self._add(event.fragment))
                case ToolCallEnd():
                    out += self._end_call()
        return out

    def finish(self, reason: str, usage: Mapping[str, Any], completed_at: int) -> list[Json]:
        """The model ended. reason: as in chat completions: stop, length, tool_calls, content_filter or another."""
        incomplete = _INCOMPLETE.get(reason)
        out: list[Json] = []
        if not self._num_items:
            out += self._begin_text("message")
        out += self._close("incomplete" if incomplete else "completed")
        self._response["usage"] = dict(usage)
        if incomplete:
            self._response |= {"status": "incomplete", "incomplete_details": {"reason": incomplete}}
        elif reason in ("stop", "tool_calls"):
            self._response |= {"status": "completed", "completed_at": completed_at}
        else:
            error = {"code": "server_error", "message": f"the model was interrupted: {reason}"}
            self._response |= {"status": "failed", "error": error}
        return [*out, self._whole(f"response.{self._response['status']}")]

    def fail(self, code: str, message: str) -> list[Json]:
        """Something went wrong after the answer had begun."""
        out = self._close("incomplete")
        self._response |= {"status": "failed", "error": {"code": code, "message": message}}
        return [*out, self._whole("response.failed")]

    def response(self) -> Json:
        """The response object as it stands."""
        return self._response | {"output": list(self._done)}

    def _text(self, text: str, kind: str, family: str) -> list[Json]:
        out: list[Json] = []
        if self._open is None or self._open["type"] != kind:
            out += self._close() + self._begin_text(kind)
        return [*out, self._add(text)]

    def _begin_text(self, kind: str) -> list[Json]:
        item: Json = {"id": self._new_id("rs_" if kind == "reasoning" else "msg_"), "type": kind}
        if kind == "reasoning":
            item |= {"summary": [], "content": [], "status": "in_progress"}
        else:
            item |= {"status": "in_progress", "role": "assistant", "phase": "final_answer", "content": []}
        return [
            self._begin(item),
            self._event("response.content_part.added", content_index=0, part=_part(kind, "")),
        ]

    def _begin_call(self, name: str) -> list[Json]:
        item = {"id": self._new_id("fc_"), "type": "function_call", "status": "in_progress"}
        return [self._begin(item | {"call_id": self._new_id("call_"), "name": name, "arguments": ""})]

    def _begin(self, item: Json) -> Json:
        self._open = item
        self._num_items += 1
        self._pieces = []
        return self._event("response.output_item.added", with_id=False, item=dict(item))

    def _add(self, text: str) -> Json:
        assert self._open is not None
        self._pieces.append(text)
        if self._open["type"] == "function_call":
            return self._event("response.function_call_arguments.delta", delta=text)
        if self._open["type"] == "reasoning":
            return self._event("response.reasoning_text.delta", content_index=0, delta=text)
        return self._event("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _end_call(self) -> list[Json]:
        assert self._open is not None
        arguments = "".join(self._pieces)
        self._open |= {"status": "completed", "arguments": arguments}
        name = self._open["name"]
        out = [self._event("response.function_call_arguments.done", name=name, arguments=arguments)]
        self._done.append(self._open)
        return out + self._end_item()

    def _close(self, status: str = "completed") -> list[Json]:
        """End the open item, if there is one. A call that is still open was never completed."""
        item = self._open
        if item is None:
            return []
        text = "".join(self._pieces)
        if item["type"] == "function_call":
            item |= {"status": "incomplete", "arguments": text}
            return self._end_item()
        part = _part(item["type"], text)
        item |= {"status": status, "content": [part]}
        if item["type"] == "reasoning":
            out = [self._event("response.reasoning_text.done", content_index=0, text=text)]
        else:
            out = [self._event("response.output_text.done", content_index=0, text=text, logprobs=[])]
        out.append(self._event("response.content_part.done", content_index=0, part=part))
        self._done.append(item)
        return out + self._end_item()

    def _end_item(self) -> list[Json]:
        item, self._open = self._open, None
        return [self._event("response.output_item.done", item=item)]

    def _event(self, kind: str, *, with_id: bool = True, **fields: Any) -> Json:
        event: Json = {"type": kind, "sequence_number": self._number, "output_index": self._num_items - 1}
        self._number += 1
        if with_id and self._open is not None:
            event["item_id"] = self._open["id"]
        return event | fields

    def _whole(self, kind: str) -> Json:
        event = {"type": kind, "sequence_number": self._number, "response": self.response()}
        self._number += 1
        return event


def _part(kind: str, text: str) -> Json:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
