"""Pieces of grammars in Lark's notation, as llguidance reads it. Only this module and `grammars` import it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import regex_to_lark

from baleen.errors import InvalidRequest
from baleen.text.tokenizer import Tokenizer

MAX_DEPTH = 64
"""Levels of objects and arrays in a schema."""

JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": r"[ \t]?|\r?\n[ \t]{0,64}"}
"""White space in JSON: a space, or a line break with an indent. Without a limit a model may write it for ever."""

HEAD = "%llguidance {}\n\n"
"""Marks a text as Lark's notation."""


def require_depth(schema: Any, where: str) -> None:
    """Raise InvalidRequest that names the field `where`, if the schema is deeper than is read."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise InvalidRequest(f"{where} is deeper than {MAX_DEPTH} levels", field=where)


def quoted(text: str) -> str:
    """A text that comes as it is."""
    return json.dumps(text)


def spelled(text: str, tokenizer: Tokenizer) -> str:
    """A text that comes as it is, its added tokens as tokens and the rest as text."""
    pieces: list[str] = []
    while text:
        head, token, text = _cut(text, tokenizer)
        pieces += [quoted(head)] if head else []
        pieces += [f"<[{token}]>"] if token is not None else []
    return " ".join(pieces) or '""'


def literal(text: str) -> str:
    """A text inside a regular expression between slashes."""
    return "".join(char if char.isalnum() or char in " _" else _escaped(char) for char in text)


def expression(pattern: str) -> str:
    r"""A regular expression as it stands between slashes; \d and \w mean ASCII, as in JSON schemas."""
    return regex_to_lark(pattern, "dw")


def free_text(name: str, without: str) -> str:
    """A terminal: any text in which `without` does not occur."""
    return f"{name}: /(?s:.*)/ & ~/(?s:.*){literal(without)}(?s:.*)/\n"


def text_until(
    name: str, tag: str, tokenizer: Tokenizer, contents: Sequence[str] = ("(?s:.*)",), *, without: str = ""
) -> tuple[str, str]:
    """A terminal `name`, and the expression with it: text that ends with the first `tag`, and that tag.

    contents: regular expressions, escaped for Lark, each of which the text before the tag matches. without: what does
    not occur in it.
    """
    head, token, tail = _cut(tag, tokenizer)
    content = " & ".join(f"/{pattern}{literal(head)}/" for pattern in contents)
    content += f" & ~/(?s:.*){literal(without)}(?s:.*)/" if without else ""
    if token is None:
        return f"{name}: {content} & ~/(?s:.*){literal(tag)}(?s:.+)/\n", name
    terminal = f"{name}: {content} & ~/(?s:.*){literal(tokenizer.added_tokens[token])}(?s:.*)/\n"
    return terminal, " ".join([name, f"<[{token}]>", *([spelled(tail, tokenizer)] if tail else [])])


def mark_of(tag: str, tokenizer: Tokenizer) -> str:
    """What of a tag must not stand in free text: its added token's text, or all of it."""
    token = _cut(tag, tokenizer)[1]
    return tag if token is None else tokenizer.added_tokens[token]


def _cut(tag: str, tokenizer: Tokenizer) -> tuple[str, int | None, str]:
    """The tag around its first added token; without one all of it comes first."""
    found = min(
        ((tag.index(text), -len(text), token) for token, text in tokenizer.added_tokens.items() if text in tag),
        default=None,
    )
    if found is None:
        return tag, None, ""
    begin, negative, token = found
    return tag[:begin], token, tag[begin - negative :]


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else char
