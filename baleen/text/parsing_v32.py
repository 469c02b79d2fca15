"""A whole completion in DeepSeek-V3.2's chat format, and strict as the official parser: anything else is refused."""

from __future__ import annotations

from baleen.text.encoding_v32 import DSML, END_THINK, THINK, Message
from baleen.text.output_events import message_of
from baleen.text.output_parser import OutputParser
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN

_SPECIAL = (BOS_TOKEN, EOS_TOKEN, THINK, END_THINK, DSML)


class MalformedCompletion(ValueError):
    """A completion that is not of the format; the message says where it leaves it."""


def parse_completion(text: str, *, thinking: bool) -> Message:
    """The assistant message that a completion is, from after the opening `<think>` or `</think>` of the prompt.

    The end-of-sequence string may be there or not. Arguments are put together from their text, so that a number keeps
    its spelling. White space between tags is free. Raises MalformedCompletion.
    """
    parser = OutputParser(thinking=thinking, tools=True)
    message = message_of([*parser.feed(text.removesuffix(EOS_TOKEN)), *parser.finish()])
    if parser.problem is not None:
        raise MalformedCompletion(parser.problem)
    for part in (message.reasoning, message.content):
        if found := next((special for special in _SPECIAL if special in part), None):
            raise MalformedCompletion(f"{found} in the text")
    return message
