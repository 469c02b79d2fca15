"""DeepSeek's rules for a whole completion, written as they are described: by regular expressions over the whole text.

An independent reference for the parser of streams: what this accepts must read the same there. Names end in their line.
"""

from __future__ import annotations

import json
import re

from baleen.text.encoding_v32 import CALLS_BEGIN, CALLS_END, DSML, END_THINK, THINK, Message, ToolCall
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN

_BLOCK = "\n\n" + CALLS_BEGIN
_INVOKE = re.compile(rf'\n<{DSML}invoke name="([^\n]*?)">\n(.*?)\n?</{DSML}invoke>', re.DOTALL)
_PARAMETER = re.compile(
    rf'<{DSML}parameter name="([^\n]*?)" string="(true|false)">(.*?)</{DSML}parameter>(?:\n|$)', re.DOTALL
)
_SPECIAL = (BOS_TOKEN, EOS_TOKEN, THINK, END_THINK, DSML)


def strict_parse(text: str, *, thinking: bool) -> Message | None:
    """The message, or None if the text is not exactly of the format."""
    rest, reasoning = text, ""
    if thinking:
        reasoning, end, rest = rest.partition(END_THINK)
        if not end or _BLOCK in reasoning:
            return None
    content, begin, block = rest.partition(_BLOCK)
    if any(special in part for part in (reasoning, content) for special in _SPECIAL):
        return None
    calls = _calls(block) if begin else []
    if calls is None:
        return None
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


def _calls(block: str) -> list[ToolCall] | None:
    calls = []
    place = 0
    while match := _INVOKE.match(block, place):
        arguments = _arguments(match[2])
        if arguments is None:
            return None
        calls.append(ToolCall(match[1], arguments))
        place = match.end()
    return calls if calls and block[place:] == "\n" + CALLS_END else None


def _arguments(lines: str) -> str | None:
    values: dict[str, str] = {}
    place = 0
    while match := _PARAMETER.match(lines, place):
        key, is_text, value = match.groups()
        if key in values:
            return None
        values[key] = json.dumps(value, ensure_ascii=False) if is_text == "true" else value
        place = match.end()
    if place != len(lines):
        return None
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in values.items()) + "}"
