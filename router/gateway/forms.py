"""The form that a client wants its answer in: from fields of a body to a constraint, checked beside the event loop."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from baleen.constraint import MAX_CHARS, Constraint
from baleen.errors import InvalidRequest, QueueFull
from baleen.text.grammars import check, deep_stack
from baleen.text.lark import HEAD, quoted
from router.gateway.fields import Field

Json = Mapping[str, Any]

MAX_CHOICES = 1024
MOST_KNOWN = 512
"""Constraints that are known to be good, the least recently used ones are forgotten first."""
MOST_WAITING = 64
"""Constraints that wait to be looked at; more are refused."""

FIELDS = (
    Field(name="response_format", kind="object", longest=8, effect="text, json_object, json_schema or regex."),
    Field(name="structured_outputs", kind="object", longest=8, effect="json, json_object, regex, choice or grammar."),
    Field(name="guided_json", kind="string or object", longest=MAX_CHARS, effect="The answer fits this JSON schema."),
    Field(name="guided_regex", kind="string", longest=MAX_CHARS, effect="The whole answer matches the expression."),
    Field(name="guided_choice", kind="array", longest=MAX_CHOICES, effect="The answer is one of these texts."),
    Field(name="guided_grammar", kind="string", longest=MAX_CHARS, effect="A grammar in Lark's or GBNF's notation."),
    Field(name="regex", kind="string", longest=MAX_CHARS, effect="As guided_regex."),
    Field(name="ebnf", kind="string", longest=MAX_CHARS, effect="As guided_grammar."),
)
"""Fields of chat and text completions; at most one of them may be there."""

_KINDS = {
    "json": "guided_json",
    "regex": "guided_regex",
    "choice": "guided_choice",
    "grammar": "guided_grammar",
}


class Forms:
    """Checks constraints in one thread of its own, and remembers which are good."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="forms")
        with deep_stack():
            # its only thread starts now
            self._executor.submit(int)
        self._known: OrderedDict[str, Constraint] = OrderedDict()
        self._waiting = 0

    async def require(self, constraint: Constraint, field: str) -> None:
        """Raise InvalidRequest that names `field`, if a constraint cannot be kept; QueueFull if too many wait."""
        await self.made(repr(constraint), field, lambda: constraint)

    async def made(self, key: str, field: str, make: Callable[[], Constraint]) -> Constraint:
        """The constraint that `make` gives, which the thread calls; `key` says all that it depends on.

        Raises InvalidRequest, of what `make` does not name itself with `field`, and QueueFull.
        """
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        if self._waiting >= MOST_WAITING:
            raise QueueFull(f"{MOST_WAITING} grammars wait to be checked, which is the limit of this gateway")
        self._waiting += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._executor, _checked, make, field)
        finally:
            self._waiting -= 1
        self._known[key] = made
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return made


def read_form(given: Json) -> tuple[Constraint, str] | None:
    """The form that a checked body asks for, and the field that does. Raises InvalidRequest that names the field."""
    found: list[tuple[Constraint, str]] = []
    for field in FIELDS:
        if field.name in given:
            one = _read(field.name, given[field.name])
            found += [one] if one is not None else []
    if len(found) > 1:
        problem = f"{found[1][1]} cannot be used with {found[0][1]}: an answer has one form"
        raise InvalidRequest(problem, field=found[1][1])
    return found[0] if found else None


def json_form(constraint: Constraint) -> Json | None:
    """The schema of an answer in JSON; None if the form is another."""
    if constraint.kind == "json_object":
        return {"type": "object"}
    schema: Json | None = json.loads(constraint.text) if constraint.kind == "json_schema" else None
    return schema


def _read(name: str, value: Any) -> tuple[Constraint, str] | None:
    if name == "response_format":
        return _response_format(value)
    if name == "structured_outputs":
        return _structured(value)
    if name == "guided_json":
        return _made("json_schema", value if isinstance(value, str) else _text(value), name), name
    if name == "guided_choice":
        return _made("grammar", _choices(value, name), name), name
    return _made("regex" if "regex" in name else "grammar", value, name), name


def _response_format(form: Json) -> tuple[Constraint, str] | None:
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json_object"), "response_format"
    if kind == "regex" and isinstance(form.get("regex"), str):
        return _made("regex", form["regex"], "response_format.regex"), "response_format.regex"
    schema = form.get("json_schema")
    if kind != "json_schema" or not isinstance(schema, dict):
        known = "text, json_object, json_schema with its json_schema, or regex with its regex"
        raise InvalidRequest(f"response_format.type is {kind!r}, must be {known}", field="response_format.type")
    field = "response_format.json_schema.schema"
    inner = schema.get("schema")
    if not isinstance(inner, dict):
        raise InvalidRequest(f"{field} is {type(inner).__name__}, must be an object", field=field)
    return _made("json_schema", _text(inner), field, lenient=schema.get("strict") is not True), field


def _structured(given: Json) -> tuple[Constraint, str] | None:
    wanted = {name: value for name, value in given.items() if value is not None and value is not False}
    if len(wanted) != 1 or not set(wanted) <= {*_KINDS, "json_object"}:
        problem = f"structured_outputs has {', '.join(wanted) or 'nothing'}, must have one of json_object, "
        raise InvalidRequest(problem + ", ".join(_KINDS), field="structured_outputs")
    ((kind, value),) = wanted.items()
    field = f"structured_outputs.{kind}"
    if kind == "json_object":
        return Constraint(kind="json_object"), field
    types: Any = {"json": (str, dict), "choice": list}.get(kind, str)
    if not isinstance(value, types):
        raise InvalidRequest(f"{field} is {type(value).__name__}, which it cannot be", field=field)
    try:
        read = _read(_KINDS[kind], value)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), field=field) from error
    return (read[0], field) if read is not None else None


def _choices(values: list[Any], field: str) -> str:
    if not 0 < len(values) <= MAX_CHOICES or not all(isinstance(value, str) for value in values):
        raise InvalidRequest(f"{field} must be 1 to {MAX_CHOICES} texts", field=field)
    return f"{HEAD}start: {' | '.join(map(quoted, values))}\n"


def _made(kind: Any, text: str, field: str, *, lenient: bool = False) -> Constraint:
    """The constraint; its own errors name the field that it comes from."""
    try:
        return Constraint(kind=kind, text=text, lenient=lenient)
    except InvalidRequest as error:
        raise InvalidRequest(str(error).replace("constraint.text", field), field=field) from error


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _checked(make: Callable[[], Constraint], field: str) -> Constraint:
    constraint = make()
    try:
        check(constraint)
    except InvalidRequest as error:
        problem = str(error).removeprefix("constraint cannot be kept: ").removeprefix("constraint.text ")
        raise InvalidRequest(f"{field} cannot be enforced: {problem}", field=field) from error
    return constraint
