"""Grammars of DeepSeek-V3.2's tool calls: what `dsml_calls` reads, with arguments that fit their schemas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baleen.errors import InvalidRequest
from baleen.text.argument_forms import FREE_ARGUMENTS, Arguments, AsJson, Form, json_rule, read_arguments
from baleen.text.call_forms import CallWriter, Rules, ToolForm
from baleen.text.encoding_v32 import CALLS_BEGIN, CALLS_END, DSML
from baleen.text.lark import literal, mark_of, quoted, spelled, text_until
from baleen.text.tokenizer import Tokenizer

_INVOKE = f'<{DSML}invoke name="'
_END_INVOKE = f"\n</{DSML}invoke>"
_PARAMETER = f'<{DSML}parameter name="'
_END_PARAMETER = f"</{DSML}parameter>"
_END_NAME = '">\n'
_NAME_CHARS = 256


def opening(name: str) -> str:
    """What an answer that must call begins with."""
    return f"\n\n{CALLS_BEGIN}\n{_INVOKE}" + (name + _END_NAME if name else "")


def call_rules(tools: Sequence[ToolForm], tokenizer: Tokenizer, opened: str | None, many: bool) -> Rules:
    """See CallWriter.rules."""
    return _Writer(tokenizer).block(tools, opened, many=many)


class _Writer:
    """Collects rules; each name is used once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lines: list[str] = []
        self._count = 0

    def block(self, tools: Sequence[ToolForm], opened: str | None, *, many: bool) -> Rules:
        # a line break is never a piece of its own: the reader of pieces takes the longest that can still be one
        invoke, end = self._spelled(f"\n{_INVOKE}"), self._spelled(f"\n{CALLS_END}")
        bodies = {tool.name: self._rule(f"{self._arguments(tool)} {self._spelled(_END_INVOKE)}") for tool in tools}
        call = self._rule(" | ".join(f"{quoted(name + _END_NAME)} {body}" for name, body in bodies.items()))
        first = bodies[opened] if opened else call
        more = f" ({invoke} {call})*" if many else ""
        start = f"{first}{more} {end}" if opened is not None else f"{invoke} {first}{more} {end}"
        return Rules(start, "".join(self._lines))

    def _arguments(self, tool: ToolForm) -> str:
        """Parameters with line breaks between them."""
        first, following = self._spelled(_PARAMETER), self._spelled(f"\n{_PARAMETER}")
        if tool.schema is None:
            one = self._parameter(self._any_name(()), FREE_ARGUMENTS, tool)
            return f"({first} {one} ({following} {one})*)?"
        arguments = read_arguments(tool.schema, tool.where)
        parts = [
            (self._parameter(self._name(parameter.name, tool), parameter.forms, tool), parameter.required)
            for parameter in arguments.parameters
        ]
        if arguments.extra:
            parts.append((self._parameter(self._any_name(_names(arguments)), arguments.extra, tool), False))
        # alone: from here on, where nothing came before; later: where something did
        later = alone = ""
        for part, required in reversed(parts):
            alone = self._rule(f"{first} {part} {later}" + ("" if required else f" | {alone or quoted('')}"))
            later = self._rule(f"{following} {part} {later}" if required else f"({following} {part})? {later}")
        return alone

    def _parameter(self, name: str, forms: Iterable[Form], tool: ToolForm) -> str:
        """One parameter, from its name on."""
        values = []
        for form in forms:
            if isinstance(form, AsJson):
                values.append(f'"false\\">" {self._rule(json_rule(form.schema))} {self._spelled(_END_PARAMETER)}')
                continue
            patterns = form.patterns
            if form.choices:
                if any(mark_of(_END_PARAMETER, self._tokenizer) in choice for choice in form.choices):
                    raise InvalidRequest(f"{tool.where}: a value holds {DSML}, which ends it", field=tool.where)
                patterns = (f"({'|'.join(map(literal, form.choices))})",)
            terminal, until = text_until(self._name_of("T"), _END_PARAMETER, self._tokenizer, patterns)
            self._lines.append(terminal)
            values.append(f'"true\\">" {until}')
        return self._rule(f'{name} "\\" string=\\"" ({" | ".join(values)})')

    def _name(self, name: str, tool: ToolForm) -> str:
        if not 0 < len(name) <= _NAME_CHARS or "\n" in name or '"' in name or DSML in name:
            problem = f"{tool.where}: a parameter is called {name[:40]!r}, which the calls of the model cannot write"
            raise InvalidRequest(problem, field=tool.where)
        return quoted(name)

    def _any_name(self, without: Sequence[str]) -> str:
        name = self._name_of("N")
        others = f" & ~/({'|'.join(map(literal, without))})/" if without else ""
        self._lines.append(f'{name}: /[^"\\n<>｜]{{1,64}}/{others}\n')
        return name

    def _rule(self, body: str) -> str:
        name = self._name_of("r")
        self._lines.append(f"{name}: {body.strip() or chr(34) * 2}\n")
        return name

    def _name_of(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}" if kind.islower() else f"{kind}{self._count}_"

    def _spelled(self, text: str) -> str:
        return spelled(text, self._tokenizer)


def _names(arguments: Arguments) -> list[str]:
    return [parameter.name for parameter in arguments.parameters]


DSML_WRITER = CallWriter(CALLS_BEGIN, opening, call_rules)
