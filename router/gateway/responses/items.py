"""Input items of the Responses dialect to messages of a chat.

What belongs to one answer stands apart here (reasoning, text, calls) and together there.
"""

from __future__ import annotations

from typing import Any

from baleen.errors import InvalidRequest

Json = dict[str, Any]

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "system", "developer", "assistant")


def to_messages(items: str | list[Any]) -> list[Json]:
    """Messages of the chat dialect. Raises InvalidRequest that names the item."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Json] = []
    answer: Json | None = None
    for place, item in enumerate(items):
        where = f"input[{place}]"
        kind = _kind(item, where)
        if kind == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": _content(item, where)})
            answer = None
        elif kind == "function_call_output":
            content = _text(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": content})
            answer = None
        else:
            if answer is None or not _goes_on(answer, kind):
                answer = {"role": "assistant", "content": ""}
                messages.append(answer)
            _add(answer, kind, item, where)
    return messages


def _kind(item: Any, where: str) -> str:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} is {type(item).__name__}, must be an object", field=where)
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message" and item.get("role") not in _ROLES:
        raise InvalidRequest(f"{where}.role is {item.get('role')!r}, must be one of {', '.join(_ROLES)}", field=where)
    if kind in ("message", "function_call", "function_call_output", "reasoning"):
        return str(kind)
    if kind == "item_reference" or (kind is None and "id" in item):
        raise InvalidRequest(f"{where} refers to a stored item, but nothing is stored: send the item", field=where)
    known = "message, function_call, function_call_output or reasoning"
    raise InvalidRequest(f"{where}.type is {kind!r}, must be {known}", field=f"{where}.type")


def _goes_on(answer: Json, kind: str) -> bool:
    """Whether an item of this kind can belong to the answer that was begun."""
    if kind == "function_call":
        return True
    if kind == "message":
        return not answer["content"] and "tool_calls" not in answer
    return not answer["content"] and "tool_calls" not in answer and "reasoning_content" not in answer


def _add(answer: Json, kind: str, item: Json, where: str) -> None:
    if kind == "message":
        answer["content"] = _content(item, where)
    elif kind == "reasoning":
        field = "content" if item.get("content") else "summary"
        answer["reasoning_content"] = _text(item.get(field) or "", f"{where}.{field}")
    else:
        function = {"name": _string(item, "name", where), "arguments": _string(item, "arguments", where)}
        call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
        answer.setdefault("tool_calls", []).append(call)


def _content(item: Json, where: str) -> str:
    return _text(item.get("content"), f"{where}.content")


def _text(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} is {type(value).__name__}, must be a string or an array", field=where)
    return "".join(_part(part, f"{where}[{place}]") for place, part in enumerate(value))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        return _string(part, "refusal", where)
    if kind in _TEXT_PARTS:
        return _string(part, "text", where)
    raise InvalidRequest(f"{where}.type is {kind!r}, but the model reads text only", field=f"{where}.type")


def _string(item: Json, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} is {type(value).__name__}, must be a string", field=f"{where}.{name}")
    return value
