"""One generated conversation, and the tools that all task families build it with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baleen.text.encoding_v32 import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation whose assistant messages are what the model learns to write.

    text: instead of messages, the prompt and its completion (fill in the middle has no chat).
    learn_from: assistant messages before this index are context only.
    """

    family: str
    messages: Sequence[Message] = ()
    thinking: bool = False
    text: tuple[str, str] | None = None
    learn_from: int = 0


Family = Callable[[random.Random, bool], Sample]
"""Makes one sample; the flag asks for a held-out instance, where a family keeps some apart."""


def user(content: str) -> Message:
    """A user message."""
    return Message(role="user", content=content)


def answer(content: str, reasoning: str = "") -> Message:
    """An assistant message."""
    return Message(role="assistant", content=content, reasoning=reasoning)
