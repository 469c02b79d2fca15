"""DeepSeek-V3.2's tool calls as the model writes them: a block of tags with the DSML token in them."""

from __future__ import annotations

import json

from baleen.text.call_grammar import CallGrammar, is_json, json_until
from baleen.text.encoding_v32 import CALLS_BEGIN, CALLS_END, DSML
from baleen.text.output_events import EventLog
from baleen.text.reader import Malformed, Reader, Reading

_INVOKE = f'<{DSML}invoke name="'
_END_INVOKE = f"</{DSML}invoke>"
_PARAMETER = f'<{DSML}parameter name="'
_END_PARAMETER = f"</{DSML}parameter>"
_NAME_CHARS = 1024
"""Longest name of a tool or parameter."""


def read_calls(reader: Reader, log: EventLog) -> Reading[None]:
    """The calls of a block, from after its opening tag to its closing one; white space between tags is free.

    Raises Malformed. What the reader keeps then is the text from the last complete call on.
    """
    tag = yield from reader.one_of(_INVOKE, space=True)
    while tag == _INVOKE:
        yield from _call(reader, log)
        reader.keep("")
        tag = yield from reader.one_of(_INVOKE, CALLS_END, space=True)


def _call(reader: Reader, log: EventLog) -> Reading[None]:
    name = yield from reader.line_until('">', _NAME_CHARS)
    log.start_call(name)
    log.arguments("{")
    keys: set[str] = set()
    while (yield from reader.one_of(_PARAMETER, _END_INVOKE, space=True)) == _PARAMETER:
        key = yield from reader.line_until('" string="', _NAME_CHARS)
        if key in keys:
            raise Malformed(f"parameter {key} of {name} is there twice")
        begin = f"{', ' if keys else ''}{json.dumps(key, ensure_ascii=False)}: "
        keys.add(key)
        if (yield from reader.one_of('true">', 'false">')) == 'true">':
            log.arguments(begin + '"')
            end = yield from reader.until((_END_PARAMETER,), lambda piece: log.arguments(_inside(piece)))
            if end is None:
                raise Malformed(f"the text ends before {_END_PARAMETER}")
            log.arguments('"')
        else:
            pieces: list[str] = []
            yield from json_until(reader, _END_PARAMETER, pieces.append)
            value = "".join(pieces)
            if not is_json(value):
                raise Malformed(f"parameter {key} of {name} is not JSON")
            log.arguments(begin + value)
    log.arguments("}")
    log.end_call()


def _inside(text: str) -> str:
    """A text as it stands inside a string of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


DSML_CALLS = CallGrammar(("\n\n" + CALLS_BEGIN, "\n" + CALLS_BEGIN, CALLS_BEGIN), read_calls)
