"""Messages of content blocks, Anthropic's, to messages of a chat."""

from __future__ import annotations

import json
from typing import Any

from baleen.errors import InvalidRequest

Json = dict[str, Any]


def to_messages(system: Any, messages: list[Any]) -> list[Json]:
    """Messages of the chat dialect; the last is to be continued if it is an answer. Errors name the block.

    Results of tools come before the text of the message that they are in. What was thought is kept; what was thought
    and hidden cannot be read.
    """
    out: list[Json] = []
    if system:
        out.append({"role": "system", "content": _text(system, "system")})
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            out += _user(message.get("content"), f"{where}.content")
        elif role == "assistant":
            out.append(_assistant(message.get("content"), f"{where}.content"))
        elif role == "system":
            out.append({"role": "system", "content": _text(message.get("content"), f"{where}.content")})
        else:
            raise InvalidRequest(f"{where}.role is {role!r}, must be user, assistant or system", field=f"{where}.role")
    if out and out[-1]["role"] == "assistant":
        out[-1]["prefix"] = True
    return out


def _user(content: Any, where: str) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Json] = []
    texts: list[str] = []
    for place, block in enumerate(_blocks(content, where)):
        at = f"{where}[{place}]"
        if block.get("type") == "tool_result":
            result = _text(block.get("content", ""), f"{at}.content")
            results.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", at), "content": result})
        else:
            texts.append(_text_block(block, at))
    return [*results, {"role": "user", "content": "\n\n".join(texts)}] if texts or not results else results


def _assistant(content: Any, where: str) -> Json:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    message: Json = {"role": "assistant", "content": ""}
    for place, block in enumerate(_blocks(content, where)):
        at, kind = f"{where}[{place}]", block.get("type")
        if kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + _string(block, "thinking", at)
        elif kind == "tool_use":
            message.setdefault("tool_calls", []).append(_call(block, at))
        elif kind != "redacted_thinking":
            message["content"] += _text_block(block, at)
    return message


def _call(block: Json, where: str) -> Json:
    given = block.get("input")
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where}.input is {type(given).__name__}, must be an object", field=f"{where}.input")
    function = {"name": _string(block, "name", where), "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": _string(block, "id", where), "type": "function", "function": function}


def _text(value: Any, where: str) -> str:
    """A text, or the texts of a list of text blocks."""
    if isinstance(value, str):
        return value
    blocks = _blocks(value, where)
    return "\n\n".join(_text_block(block, f"{where}[{place}]") for place, block in enumerate(blocks))


def _text_block(block: Json, where: str) -> str:
    if block.get("type") != "text":
        raise InvalidRequest(f"{where}.type is {block.get('type')!r}, but the model reads text only", field=where)
    return _string(block, "text", where)


def _blocks(value: Any, where: str) -> list[Json]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} is {type(value).__name__}, must be a string or an array", field=where)
    for place, block in enumerate(value):
        if not isinstance(block, dict):
            at = f"{where}[{place}]"
            raise InvalidRequest(f"{at} is {type(block).__name__}, must be an object", field=at)
    return value


def _string(block: Json, name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} is {type(value).__name__}, must be a string", field=f"{where}.{name}")
    return value
