"""Grammars of V3.2-Exp's tool calls: what `tool_token_calls` reads, with arguments that fit their schemas."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.text.argument_forms import json_rule, object_schema
from baleen.text.call_forms import CallWriter, Rules, ToolForm
from baleen.text.encoding_v32_exp import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR
from baleen.text.lark import quoted, spelled
from baleen.text.tokenizer import Tokenizer


def opening(name: str) -> str:
    """What an answer that must call begins with."""
    return CALLS_BEGIN + CALL_BEGIN + (name + SEPARATOR if name else "")


def call_rules(tools: Sequence[ToolForm], tokenizer: Tokenizer, opened: str | None, many: bool) -> Rules:
    """See CallWriter.rules."""
    lines: list[str] = []
    for place, tool in enumerate(tools):
        schema = {"type": "object"} if tool.schema is None else object_schema(tool.schema, tool.where)
        lines.append(f"r{place}: {json_rule(schema)}\n")
    separator, end_call, begin_call = (spelled(tag, tokenizer) for tag in (SEPARATOR, CALL_END, CALL_BEGIN))
    bodies = {tool.name: f"r{place} {end_call}" for place, tool in enumerate(tools)}
    calls = " | ".join(f"{quoted(name)} {separator} {body}" for name, body in bodies.items())
    lines.append(f"call: {calls}\n")
    more = f" ({begin_call} call)*" if many else ""
    start = f"{bodies[opened] if opened else 'call'}{more} {spelled(CALLS_END, tokenizer)}"
    return Rules(start if opened is not None else f"{begin_call} {start}", "".join(lines))


TOOL_TOKEN_WRITER = CallWriter(CALLS_BEGIN, opening, call_rules)
