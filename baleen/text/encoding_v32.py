"""DeepSeek-V3.2's chat format: a conversation to the text that the model reads, as the official encoder writes it.

The format has no template: it is a concatenation, one piece per message. A user message (and the last tool result)
already opens the answer with `<think>` or `</think>`, so nothing is added to ask for one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from baleen.errors import InvalidRequest
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN

Role = Literal["system", "user", "developer", "assistant", "tool"]

DSML = "｜DSML｜"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
CALLS_BEGIN = f"<{DSML}function_calls>"
CALLS_END = f"</{DSML}function_calls>"

_TOOLS = f"""## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "{CALLS_BEGIN}" block like the following as part of your reply to the user:
{CALLS_BEGIN}
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
{CALLS_END}

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:

{CALLS_BEGIN}
...
{CALLS_END}

<function_results>
...
</function_results>

{THINK}...thinking about results{END_THINK}

Here are the functions available in JSONSchema format:
<functions>
%s
</functions>
"""
_RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
_DEVELOPER = "\n\n# The user's message is: "


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made. arguments: the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. tools: function objects (name, description, parameters) in the order they are offered.

    tools and response_format belong to system and developer messages, reasoning and tool_calls to assistant messages.
    A tool message holds one result; results follow the calls in the calls' order.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    response_format: Mapping[str, Any] | None = None


def encode_messages(messages: Sequence[Message], *, thinking: bool, begin: bool = True) -> str:
    """The text of a conversation: the pieces of `encode_pieces`, joined, after the beginning-of-sentence string.

    begin: False leaves that string out, for text that continues other text.
    """
    return (BOS_TOKEN if begin else "") + "".join(encode_pieces(messages, thinking=thinking))


def encode_pieces(messages: Sequence[Message], *, thinking: bool) -> list[str]:
    """The text of each message. What the model writes is exactly the pieces of the assistant messages.

    Reasoning is kept in the turn that the last user message began, and dropped before it. Raises InvalidRequest that
    names the message.
    """
    last_user = max((i for i, message in enumerate(messages) if message.role in ("user", "developer")), default=-1)
    return [_piece(messages, index, last_user, thinking) for index in range(len(messages))]


def to_json(value: object) -> str:
    """JSON as the format has it: a space after commas and colons, characters beyond ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def _piece(messages: Sequence[Message], index: int, last_user: int, thinking: bool) -> str:
    message = messages[index]
    if message.role == "system":
        return message.content + offers(message)
    if message.role == "user":
        return USER + message.content + ASSISTANT + open_answer(thinking and index == last_user)
    if message.role == "developer":
        if not message.content:
            raise refuse(index, "content", "a developer message needs content")
        content = offers(message) + _DEVELOPER + message.content
        return USER + content + ASSISTANT + open_answer(thinking and index == last_user)
    if message.role == "tool":
        return _result(messages, index, thinking and index >= last_user)
    return _answer(message, index, thinking and index > last_user)


def open_answer(think: bool) -> str:
    """What an answer begins with, as part of the prompt."""
    return THINK if think else END_THINK


def offers(message: Message) -> str:
    """Tools and response format, as they follow a system text."""
    text = ""
    if message.tools:
        text += "\n\n" + _TOOLS % "\n".join(to_json(tool) for tool in message.tools)
    return text + offer_format(message)


def offer_format(message: Message) -> str:
    """The response format, as it follows a system text."""
    if message.response_format is None:
        return ""
    return "\n\n" + _RESPONSE_FORMAT + to_json(message.response_format)


def _answer(message: Message, index: int, keeps_reasoning: bool) -> str:
    if keeps_reasoning and not message.reasoning and not message.tool_calls:
        raise refuse(
            index, "reasoning_content", "in thinking mode an answer after the last user message needs it, or tool calls"
        )
    reasoning = message.reasoning + END_THINK if keeps_reasoning else ""
    calls = ""
    if message.tool_calls:
        block = "\n".join(_call(call, index) for call in message.tool_calls)
        calls = f"\n\n{CALLS_BEGIN}\n{block}\n{CALLS_END}"
    return reasoning + message.content + calls + EOS_TOKEN


def _call(call: ToolCall, index: int) -> str:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        raise refuse(index, "tool_calls", f"arguments of {call.name} are not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        found = type(arguments).__name__
        raise refuse(index, "tool_calls", f"arguments of {call.name} are {found}, must be an object")
    lines = "\n".join(_parameter(name, value) for name, value in arguments.items())
    return f'<{DSML}invoke name="{call.name}">\n{lines}\n</{DSML}invoke>'


def _parameter(name: str, value: object) -> str:
    is_text = isinstance(value, str)
    text = value if is_text else to_json(value)
    return f'<{DSML}parameter name="{name}" string="{"true" if is_text else "false"}">{text}</{DSML}parameter>'


def _result(messages: Sequence[Message], index: int, think: bool) -> str:
    """One result; the first opens the block, and the one that answers the last call closes it."""
    asked = index - 1
    while asked >= 0 and messages[asked].role == "tool":
        asked -= 1
    calls = messages[asked].tool_calls if asked >= 0 else ()
    place = index - asked
    if place > len(calls):
        raise refuse(index, "role", f"this is result {place} of {len(calls)} tool calls")
    text = "\n\n<function_results>" if place == 1 else ""
    text += f"\n<result>{messages[index].content}</result>"
    if place == len(calls):
        text += "\n</function_results>\n\n" + open_answer(think)
    return text


def refuse(index: int, field: str, problem: str) -> InvalidRequest:
    """The error that names a message, counted from 0, and its field."""
    where = f"messages[{index}].{field}"
    return InvalidRequest(f"{where}: {problem}", field=where)
