"""Chat formats: a conversation becomes a prompt, what the model writes a message. One protocol, two formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from baleen.text import encoding_v32, encoding_v32_exp
from baleen.text.call_forms import CallWriter
from baleen.text.dsml_calls import DSML_CALLS
from baleen.text.dsml_grammar import DSML_WRITER
from baleen.text.encoding_v32 import ASSISTANT, DSML, END_THINK, Message, open_answer, refuse
from baleen.text.output_parser import OutputParser
from baleen.text.tokenizer import Tokenizer
from baleen.text.tokenizer_files import BOS_TOKEN
from baleen.text.tool_token_calls import TOOL_TOKEN_CALLS
from baleen.text.tool_token_grammar import TOOL_TOKEN_WRITER

FormatName = Literal["deepseek-v3.2", "deepseek-v3.2-exp"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text for the model. thinking: what it writes begins inside its reasoning."""

    text: str
    thinking: bool


class ChatFormat(Protocol):
    """The text between a gateway and a model."""

    def encode(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        continue_last: bool = False,
    ) -> Prompt:
        """The prompt that asks for the next answer, or with `continue_last` for the rest of the last one.

        tools, response_format: offered for the whole conversation, with the first system message. Results of tools
        follow their calls, in the calls' order. Raises InvalidRequest that names the message and its field.
        """
        ...

    @property
    def calls(self) -> CallWriter:
        """How answers that call tools begin, and the grammars of calls."""
        ...

    def parser(self, *, thinking: bool, tools: bool) -> OutputParser:
        """A parser of one answer. thinking: as the prompt says. tools: calls are looked for."""
        ...


class V32Format:
    """DeepSeek-V3.2: DSML tool calls, with and without thinking; the reasoning of the running turn is shown again."""

    calls = DSML_WRITER

    def encode(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        continue_last: bool = False,
    ) -> Prompt:
        """See ChatFormat.encode."""
        done, last = _split(messages, continue_last)
        pieces = encoding_v32.encode_pieces(done, thinking=thinking)
        if tools or response_format is not None:
            # Where the conversation begins with a system message, they follow it; else they stand alone.
            place = 1 if done and done[0].role == "system" else 0
            pieces.insert(place, encoding_v32.offers(_system(tools, response_format)))
        if not done or done[-1].role in ("system", "assistant"):
            pieces.append(ASSISTANT + open_answer(thinking))
        return _continued(BOS_TOKEN + "".join(pieces), last, thinking)

    def parser(self, *, thinking: bool, tools: bool) -> OutputParser:
        """See ChatFormat.parser."""
        return OutputParser(thinking=thinking, tools=tools, calls=DSML_CALLS)


class V32ExpFormat:
    """DeepSeek-V3.2-Exp: calls are JSON between tokens of their own; after a tool's output there is no thinking."""

    calls = TOOL_TOKEN_WRITER

    def encode(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        continue_last: bool = False,
    ) -> Prompt:
        """See ChatFormat.encode. Developer messages count as system messages."""
        done, last = _split(messages, continue_last)
        offered = [_system(tools, response_format)] if tools or response_format is not None else []
        text = encoding_v32_exp.encode_messages(done, offered)
        if done and done[-1].role == "tool":
            return _continued(text, last, False)
        return _continued(text + ASSISTANT + open_answer(thinking), last, thinking)

    def parser(self, *, thinking: bool, tools: bool) -> OutputParser:
        """See ChatFormat.parser."""
        return OutputParser(thinking=thinking, tools=tools, calls=TOOL_TOKEN_CALLS)


FORMATS: Mapping[FormatName, ChatFormat] = {"deepseek-v3.2": V32Format(), "deepseek-v3.2-exp": V32ExpFormat()}


def format_of(tokenizer: Tokenizer) -> FormatName:
    """The format that a checkpoint was trained for: V3.2's tokenizer has a token for DSML, V3.2-Exp's has none."""
    return "deepseek-v3.2" if len(tokenizer.encode(DSML)) == 1 else "deepseek-v3.2-exp"


def _system(tools: Sequence[Mapping[str, Any]], response_format: Mapping[str, Any] | None) -> Message:
    return Message(role="system", tools=tools, response_format=response_format)


def _split(messages: Sequence[Message], continue_last: bool) -> tuple[Sequence[Message], Message | None]:
    """The messages that are complete, and the one to go on with. Every call must have its result."""
    if not messages:
        raise refuse(0, "role", "a conversation needs a message")
    done, last = messages, None
    if continue_last:
        done, last = messages[:-1], messages[-1]
        if last.role != "assistant" or last.tool_calls:
            raise refuse(len(done), "role", "only an assistant message without tool calls can be continued")
    _check_results(done)
    return done, last


def _check_results(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        if not message.tool_calls:
            continue
        results = 0
        for following in messages[index + 1 :]:
            if following.role != "tool":
                break
            results += 1
        if results < len(message.tool_calls):
            problem = f"{len(message.tool_calls)} calls are followed by {results} tool messages, each needs one"
            raise refuse(index, "tool_calls", problem)


def _continued(text: str, last: Message | None, thinking: bool) -> Prompt:
    """The prompt, from where an answer was opened. `last`: how far the answer got."""
    if last is None:
        return Prompt(text, thinking)
    if not thinking:
        return Prompt(text + last.content, thinking=False)
    if not last.content:
        return Prompt(text + last.reasoning, thinking=True)
    return Prompt(text + last.reasoning + END_THINK + last.content, thinking=False)
