"""What an output parser tells: pieces of reasoning, content and tool calls, and the message that they make up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baleen.text.encoding_v32 import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call began. Calls of one output are numbered from 0, in order."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is complete: its fragments together are a JSON object."""

    index: int


Event = Reasoning | Content | ToolCallStart | ToolCallArguments | ToolCallEnd


class EventLog:
    """Events that were not handed out yet; pieces of the same kind that follow each other become one."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._num_calls = 0

    def drain(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = self._events, []
        return events

    def reasoning(self, text: str) -> None:
        """More reasoning."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Reasoning):
            self._events[-1] = Reasoning(last.text + text)
        elif text:
            self._events.append(Reasoning(text))

    def content(self, text: str) -> None:
        """More content."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Content):
            self._events[-1] = Content(last.text + text)
        elif text:
            self._events.append(Content(text))

    def start_call(self, name: str) -> None:
        """The next call."""
        self._events.append(ToolCallStart(self._num_calls, name))
        self._num_calls += 1

    def arguments(self, fragment: str) -> None:
        """More of the arguments of the call that began last."""
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallArguments):
            self._events[-1] = ToolCallArguments(last.index, last.fragment + fragment)
        elif fragment:
            self._events.append(ToolCallArguments(self._num_calls - 1, fragment))

    def end_call(self) -> None:
        """The call that began last is complete."""
        self._events.append(ToolCallEnd(self._num_calls - 1))


def message_of(events: Iterable[Event]) -> Message:
    """The assistant message of a whole output. Calls without an end are left out: their text is in the content."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[ToolCall] = []
    name, fragments = "", list[str]()
    for event in events:
        match event:
            case Reasoning(text):
                reasoning.append(text)
            case Content(text):
                content.append(text)
            case ToolCallStart():
                name, fragments = event.name, []
            case ToolCallArguments():
                fragments.append(event.fragment)
            case ToolCallEnd():
                calls.append(ToolCall(name, "".join(fragments)))
    return Message(role="assistant", content="".join(content), reasoning="".join(reasoning), tool_calls=calls)
