"""The grammar of a whole answer that may or must call tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.constraint import Constraint
from baleen.text.argument_forms import json_rule
from baleen.text.call_forms import CallWriter, ToolForm
from baleen.text.encoding_v32 import END_THINK
from baleen.text.lark import HEAD, free_text, mark_of, spelled, text_until
from baleen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What an answer may be.

    opened: None: it may call; else it must, a tool of that name or, if it is empty, any. thinking: it begins inside its
    reasoning, which is free text without calls; else where it must call, the prompt ends with the opening of that name.
    many: of one call or more. otherwise: JSON that an answer without calls fits; None: it is free text, which may also
    precede the calls.
    """

    tools: Sequence[ToolForm]
    opened: str | None
    many: bool
    otherwise: Mapping[str, Any] | None = None
    lenient: bool = False
    thinking: bool = False


def answer_constraint(form: AnswerForm, writer: CallWriter, tokenizer: Tokenizer) -> Constraint:
    """The grammar as a constraint. Raises InvalidRequest that names the tool whose schema cannot be enforced."""
    calls = writer.rules(form.tools, tokenizer, form.opened, form.many)
    lines = [calls.text, f"calls: {calls.start}\n"]
    if form.opened is not None:
        body = f"{spelled(writer.opening(form.opened), tokenizer)} calls" if form.thinking else "calls"
    elif form.otherwise is not None:
        lines.append(f"json: {json_rule(form.otherwise, lenient=form.lenient)}\n")
        body = f'(json | ("\\n\\n")? {spelled(writer.begin, tokenizer)} calls)'
    else:
        terminal, until = text_until("BEFORE", writer.begin, tokenizer)
        lines += [terminal, free_text("FREE", mark_of(writer.begin, tokenizer))]
        body = f"(FREE | {until} calls)"
    if form.thinking:
        terminal, until = text_until("THOUGHT", END_THINK, tokenizer, without=mark_of(writer.begin, tokenizer))
        lines.append(terminal)
        body = f"{until} {body}"
    return Constraint(kind="grammar", text=f"{HEAD}start: {body}\n{''.join(lines)}")
