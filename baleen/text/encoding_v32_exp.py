"""The chat format of DeepSeek-V3.2-Exp, which is V3.1-Terminus's: a conversation to the text that the model reads.

An answer is opened after a user's message, and by the prompt's end; after a tool's output the model just goes on.
Reasoning is never shown to the model again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baleen.text.encoding_v32 import ASSISTANT, END_THINK, USER, Message, offer_format, to_json
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
OUTPUT_BEGIN = "<｜tool▁output▁begin｜>"
OUTPUT_END = "<｜tool▁output▁end｜>"

_RULES = f"""
IMPORTANT: ALWAYS adhere to this exact format for tool use:
{CALLS_BEGIN}{CALL_BEGIN}tool_call_name{SEPARATOR}tool_call_arguments{CALL_END}{{{{additional_tool_calls}}}}{CALLS_END}

Where:

- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces
"""


def encode_messages(messages: Sequence[Message], offered: Sequence[Message] = ()) -> str:
    """The text of a conversation, before the answer is opened. Developer messages count as system messages.

    offered: messages whose tools and response format, and nothing else, follow the system text.
    """
    system = [message for message in messages if message.role in ("system", "developer")]
    pieces = [BOS_TOKEN, "\n\n".join(message.content for message in system)]
    pieces += [_offers(message) for message in (*system, *offered)]
    before = "system" if system else ""
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        if message.role == "user":
            pieces.append(USER + message.content)
        elif message.role == "tool":
            pieces.append(OUTPUT_BEGIN + message.content + OUTPUT_END)
        else:
            pieces.append(_answer(message, before))
        before = message.role
    return "".join(pieces)


def _answer(message: Message, before: str) -> str:
    """One answer. before: role of the message before it, where system messages count only at the beginning."""
    opening = ASSISTANT + END_THINK
    if message.tool_calls:
        calls = "".join(CALL_BEGIN + call.name + SEPARATOR + call.arguments + CALL_END for call in message.tool_calls)
        opening = opening if before in ("user", "system") else ""
        return opening + message.content + CALLS_BEGIN + calls + CALLS_END + EOS_TOKEN
    content = message.content
    if before != "tool" and END_THINK in content:
        content = content.partition(END_THINK)[2]
    return (opening if before == "user" else "") + content + EOS_TOKEN


def _offers(message: Message) -> str:
    text = ""
    if message.tools:
        text += "\n\n## Tools\nYou have access to the following tools:\n" + "".join(map(_tool, message.tools)) + _RULES
    return text + offer_format(message)


def _tool(tool: Mapping[str, Any]) -> str:
    parameters = to_json(tool.get("parameters") or {})
    return f"\n### {tool['name']}\nDescription: {tool.get('description') or ''}\n\nParameters: {parameters}\n"
