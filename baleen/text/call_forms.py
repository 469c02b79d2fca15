"""What a grammar of tool calls is made from, in every chat format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from baleen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ToolForm:
    """A tool that may be called. schema: of its arguments; None: any will do. where: the field that holds it."""

    name: str
    schema: Mapping[str, Any] | None
    where: str = "tools"


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules and terminals in Lark's notation, and `start`, the expression that begins with them."""

    start: str
    text: str


class CallWriter(NamedTuple):
    """How a chat format writes a block of calls, for grammars.

    begin: the text that a block begins with. opening: what an answer begins with that must call the tool of that name,
    or with an empty name any tool. rules: what follows `begin`, or where `opened` is not None what follows the opening
    with that name; at most one call unless `many`. It raises InvalidRequest for a schema that cannot be enforced.
    """

    begin: str
    opening: Callable[[str], str]
    rules: Callable[[Sequence[ToolForm], Tokenizer, str | None, bool], Rules]
