"""Tool calls of DeepSeek-V3.1 and V3.2-Exp as the model writes them: names and JSON between tokens made for it."""

from __future__ import annotations

from baleen.text.call_grammar import CallGrammar, is_json, json_until
from baleen.text.encoding_v32_exp import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR
from baleen.text.output_events import EventLog
from baleen.text.reader import Malformed, Reader, Reading

_NAME_CHARS = 1024
"""Longest name of a tool."""


def read_calls(reader: Reader, log: EventLog) -> Reading[None]:
    """The calls of a block, from after its opening tag to its closing one; white space between tags is free."""
    tag = yield from reader.one_of(CALL_BEGIN, space=True)
    while tag == CALL_BEGIN:
        name = yield from reader.line_until(SEPARATOR, _NAME_CHARS)
        log.start_call(name)
        yield from reader.one_of("{", space=True)
        arguments = _Arguments(log)
        arguments.put("{")
        yield from json_until(reader, CALL_END, arguments.put)
        if not is_json(arguments.text()):
            raise Malformed(f"arguments of {name} are not a JSON object")
        arguments.finish()
        log.end_call()
        reader.keep("")
        tag = yield from reader.one_of(CALL_BEGIN, CALLS_END, space=True)


class _Arguments:
    """Passes JSON text on, but for the braces that it ends with: what is not finished is never a whole object."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._pieces: list[str] = []
        self._held = ""

    def put(self, text: str) -> None:
        self._pieces.append(text)
        text = self._held + text
        free = text.rstrip("} \t\r\n")
        self._log.arguments(free)
        self._held = text[len(free) :]

    def text(self) -> str:
        return "".join(self._pieces)

    def finish(self) -> None:
        self._log.arguments(self._held.rstrip())


TOOL_TOKEN_CALLS = CallGrammar((CALLS_BEGIN,), read_calls)
