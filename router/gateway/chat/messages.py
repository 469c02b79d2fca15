"""Messages of the chat dialect, checked, as messages of a chat format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from baleen.errors import InvalidRequest
from baleen.text.encoding_v32 import Message, ToolCall
from router.gateway.fields import MAX_TEXT, Field, check

Json = Mapping[str, Any]
MissingReasoning = Literal["reject", "fill_empty"]

_MESSAGE = (
    Field(
        name="role",
        kind="string",
        required=True,
        choices=("system", "developer", "user", "assistant", "tool"),
        effect="Who speaks.",
    ),
    Field(name="content", kind="string or array", longest=MAX_TEXT, effect="A text, or parts of type text."),
    Field(name="reasoning_content", kind="string", longest=MAX_TEXT, effect="What was thought before an answer."),
    Field(name="reasoning", kind="string", longest=MAX_TEXT, effect="The same, as others call it."),
    Field(name="tool_calls", kind="array", longest=128, effect="Calls that an answer made."),
    Field(name="tool_call_id", kind="string", longest=256, effect="Which call a tool's result belongs to."),
    Field(name="prefix", kind="boolean", effect="The last message, an answer, is gone on with."),
)
_CALL = (
    Field(name="id", kind="string", required=True, longest=256, effect="What the result refers to."),
    Field(name="function", kind="object", required=True, longest=8, effect="name and arguments."),
)
_FUNCTION = (
    Field(name="name", kind="string", required=True, longest=128, effect="The tool."),
    Field(name="arguments", kind="string", required=True, longest=MAX_TEXT, effect="JSON text of an object."),
)


def read_messages(raw: Sequence[Any], *, thinking: bool, missing: MissingReasoning) -> list[Message]:
    """Messages in the order of the chat format: results of tools in the order of their calls. Names what is wrong.

    missing: what to do where the answer to a tool's result has lost its reasoning.
    """
    if not raw:
        raise InvalidRequest("Empty input messages", field="messages")
    checked = [_checked(message, place) for place, message in enumerate(raw)]
    if thinking:
        _require_reasoning(checked, missing)
    messages: list[Message] = []
    pending: dict[str, int] = {}
    results: list[Message | None] = []
    for place, message in enumerate(checked):
        is_end = place == len(checked) - 1
        if message.get("prefix") and (not is_end or message["role"] != "assistant" or message.get("tool_calls")):
            raise _prefix(place)
        if message["role"] == "tool":
            call = message.get("tool_call_id")
            if call not in pending:
                raise _refuse(
                    place,
                    "tool_call_id",
                    "Messages with role 'tool' must be a response to a preceding message with 'tool_calls'",
                )
            results[pending.pop(call)] = Message(role="tool", content=message["content"])
            if not pending:
                messages += [result for result in results if result is not None]
            continue
        if pending:
            raise _insufficient(place - 1)
        calls = message.get("tool_calls", ())
        pending = {call["id"]: index for index, call in enumerate(calls)}
        if len(pending) < len(calls):
            raise _refuse(place, "tool_calls", "ids of tool_calls must be unique")
        results = [None] * len(calls)
        messages.append(_message(message))
    if pending:
        raise _insufficient(len(checked) - 1)
    return messages


def _checked(message: Any, place: int) -> dict[str, Any]:
    where = f"messages[{place}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} is {type(message).__name__}, must be an object", field=where)
    found = check(message, _MESSAGE, where)
    for index, call in enumerate(found.get("tool_calls", ())):
        at = f"{where}.tool_calls[{index}]"
        if not isinstance(call, dict):
            raise InvalidRequest(f"{at} is {type(call).__name__}, must be an object", field=at)
        check(check(call, _CALL, at)["function"], _FUNCTION, f"{at}.function")
    if "content" not in found and not (found["role"] == "assistant" and (found.get("tool_calls") or "prefix" in found)):
        raise _refuse(place, "content", "it is missing")
    found["content"] = _text(found.get("content", ""), f"{where}.content")
    return found


def _message(found: Json) -> Message:
    return Message(
        role=found["role"],
        content=found["content"],
        reasoning=_reasoning(found) or "",
        tool_calls=[
            ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in found.get("tool_calls", ())
        ],
    )


def _reasoning(found: Json) -> str | None:
    reasoning: str | None = found.get("reasoning_content", found.get("reasoning"))
    return reasoning


def _text(content: str | list[Any], where: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            at = f"{where}[{place}]"
            raise InvalidRequest(f"{at} is of type {kind!r}, but the model reads parts of type text only", field=at)
        texts.append(part[kind])
    return "".join(texts)


def _require_reasoning(messages: Sequence[Json], missing: MissingReasoning) -> None:
    """In the turn that goes on, every answer that called tools needs what it was thought with."""
    last_user = max((i for i, message in enumerate(messages) if message["role"] in ("user", "developer")), default=-1)
    for place, message in enumerate(messages):
        if place > last_user and message.get("tool_calls") and _reasoning(message) is None and missing == "reject":
            raise InvalidRequest(
                f"Missing `reasoning_content` field in the assistant message at message index {place}. For more "
                "information, please refer to https://api-docs.deepseek.com/guides/thinking_mode#tool-calls",
                field=f"messages[{place}].reasoning_content",
            )


def _refuse(place: int, name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"messages[{place}].{name}: {problem}", field=f"messages[{place}].{name}")


def _prefix(place: int) -> InvalidRequest:
    return InvalidRequest(
        "Invalid completion message: prefix set true with message which is not final message or message role is not "
        "assistant",
        field=f"messages[{place}].prefix",
    )


def _insufficient(place: int) -> InvalidRequest:
    return InvalidRequest(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        "(insufficient tool messages following tool_calls message)",
        field=f"messages[{place}].tool_calls",
    )
