"""What the model wrote in DeepSeek-V3.2's chat format, taken apart: reasoning, content and tool calls.

Strict, as the official parser: text that is not exactly of the format is refused.
"""

from __future__ import annotations

import json
import re

from baleen.text.encoding_v32 import CALLS_BEGIN, CALLS_END, DSML, END_THINK, THINK, Message, ToolCall
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN

_BLOCK = "\n\n" + CALLS_BEGIN
_INVOKE = re.compile(rf'\n<{DSML}invoke name="(.*?)">\n(.*?)\n?</{DSML}invoke>', re.DOTALL)
_PARAMETER = re.compile(
    rf'<{DSML}parameter name="(.*?)" string="(true|false)">(.*?)</{DSML}parameter>(?:\n|$)', re.DOTALL
)
_SPECIAL = (BOS_TOKEN, EOS_TOKEN, THINK, END_THINK, DSML)


class MalformedCompletion(ValueError):
    """A completion that is not of the format; the message says where it leaves it."""


def parse_completion(text: str, *, thinking: bool) -> Message:
    """The assistant message that a completion is, from after the opening `<think>` or `</think>` of the prompt.

    The end-of-sequence string may be there or not. Arguments are put together from their text, so that a number keeps
    its spelling. Raises MalformedCompletion.
    """
    rest = text.removesuffix(EOS_TOKEN)
    reasoning = ""
    if thinking:
        reasoning, end, rest = rest.partition(END_THINK)
        if not end or _BLOCK in reasoning:
            raise MalformedCompletion(f"the reasoning does not end with {END_THINK}")
    content, begin, block = rest.partition(_BLOCK)
    for part in (reasoning, content):
        if found := next((special for special in _SPECIAL if special in part), None):
            raise MalformedCompletion(f"{found} in the text")
    calls = _calls(block) if begin else []
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


def _calls(block: str) -> list[ToolCall]:
    """The calls of a block, from after its opening tag."""
    calls = []
    place = 0
    while match := _INVOKE.match(block, place):
        calls.append(ToolCall(match[1], _arguments(match[1], match[2])))
        place = match.end()
    if not calls or block[place:] != "\n" + CALLS_END:
        raise MalformedCompletion(f"call {len(calls) + 1} of the block is not complete")
    return calls


def _arguments(name: str, lines: str) -> str:
    values: dict[str, str] = {}
    place = 0
    while match := _PARAMETER.match(lines, place):
        key, is_text, value = match.groups()
        if key in values:
            raise MalformedCompletion(f"parameter {key} of {name} is there twice")
        values[key] = json.dumps(value, ensure_ascii=False) if is_text == "true" else value
        place = match.end()
    if place != len(lines):
        raise MalformedCompletion(f"parameter {len(values) + 1} of {name} is not of the format")
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in values.items()) + "}"
