"""From the JSON schema of a tool's arguments to the forms that each parameter can be written in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.errors import InvalidRequest
from baleen.text.lark import JSON_OPTIONS, expression, require_depth

Json = Mapping[str, Any]

ANY_TEXT = "(?s:.*)"

_NOTES = {"description", "title", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "$schema"}
_OBJECT = _NOTES | {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$id", "strict"}
_PLACED = re.compile(r"\||\$|\(\?|\\[bBAzZ]|(?<!\[)\^")
_STRING = _NOTES | {"type", "minLength", "maxLength", "pattern", "format"}
_OTHER_TYPES = ("null", "boolean", "number", "array", "object")
_LONG = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26]|0[48])00)-02-29"
_DAY = f"({_LONG}|{_SHORT}|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"(([0-9]{{3}}[1-9]|[1-9][0-9]{{2}}0)-{_DAY}|{_LEAP})"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""Formats of strings that are written as they are; others are written as JSON."""


@dataclass(frozen=True, slots=True)
class Written:
    """Text as it is: each of `patterns` matches all of it (escaped for Lark), or it is one of `choices`."""

    patterns: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AsJson:
    """JSON that fits the schema, which stands alone."""

    schema: Json


Form = Written | AsJson

_WHOLE_TEXT = Written((ANY_TEXT,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter in all its forms."""

    name: str
    forms: tuple[Form, ...]
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Parameters in their order. extra: forms of one more with a name of its own choice; none: there is none."""

    parameters: tuple[Parameter, ...]
    extra: tuple[Form, ...] = ()


FREE_ARGUMENTS: tuple[Form, ...] = (_WHOLE_TEXT, AsJson({"type": list(_OTHER_TYPES)}))
"""Forms of any value."""


def read_arguments(schema: Json, where: str) -> Arguments:
    """The parameters of an object's schema; what it does not name is left out unless it is asked for.

    where: the field that holds the schema. Raises InvalidRequest for what cannot be written parameter by parameter.
    """
    root = object_schema(schema, where)
    if unknown := sorted(set(root) - _OBJECT):
        problem = f"{where}: {', '.join(unknown)} of an object of arguments cannot be enforced"
        raise InvalidRequest(problem, field=where)
    required = root.get("required", [])
    named = root.get("properties", {})
    if not isinstance(named, Mapping) or not isinstance(required, list):
        raise InvalidRequest(f"{where}: properties must be an object and required an array", field=where)
    if missing := [name for name in required if name not in named]:
        raise InvalidRequest(f"{where}: {missing[0]!r} is required and is no property", field=where)
    parameters = tuple(
        Parameter(name=name, forms=tuple(_forms(value, root, 0)), required=name in required)
        for name, value in named.items()
    )
    more = root.get("additionalProperties", False)
    return Arguments(parameters=parameters, extra=() if more is False else tuple(_forms(more, root, 0)))


def object_schema(schema: Json, where: str) -> dict[str, Any]:
    """The schema of an object of arguments, a reference at its root followed, closed where it does not say."""
    require_depth(schema, where)
    root: dict[str, Any] = dict(schema)
    for _ in range(8):
        if "$ref" not in root:
            break
        kept: dict[str, Any] = {name: root[name] for name in ("$defs", "definitions") if name in root}
        found = _referred(root["$ref"], root)
        if not isinstance(found, Mapping):
            raise InvalidRequest(f"{where}: {root['$ref']!r} does not exist", field=where)
        root = {**found, **kept}
    if root.setdefault("type", "object") != "object":
        raise InvalidRequest(f"{where}: type is {root['type']!r}, arguments are an object", field=where)
    root.setdefault("additionalProperties", False)
    return root


def json_rule(schema: Json, *, lenient: bool = False) -> str:
    """Lark's expression for JSON that fits a schema. lenient: see Constraint."""
    options = {**JSON_OPTIONS, "lenient": lenient, "coerce_one_of": lenient}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def _forms(value: Any, root: Json, depth: int) -> Iterator[Form]:
    """How a value can be written: strings as they are, all else as JSON."""
    if value is True or value == {}:
        yield from FREE_ARGUMENTS
        return
    if not isinstance(value, Mapping):
        yield AsJson({"enum": []} if value is False else {"type": str(value)})
        return
    plain = {name: inner for name, inner in value.items() if name not in _NOTES}
    if "$ref" in plain and len(plain) == 1 and depth < 8:
        found = _referred(plain["$ref"], root)
        if found is not None:
            yield from _forms(found, root, depth + 1)
            return
    if "anyOf" in plain and len(plain) == 1 and isinstance(plain["anyOf"], list) and depth < 8:
        for option in plain["anyOf"]:
            yield from _forms(option, root, depth + 1)
        return
    kinds = plain.get("type")
    choices = [plain["const"]] if "const" in plain else plain.get("enum")
    if isinstance(choices, list) and not set(plain) - {"type", "const", "enum"} and kinds in (None, "string"):
        yield from _choices(choices, text_only=kinds == "string")
    elif kinds == "string":
        yield _text_form(plain, root)
    elif isinstance(kinds, list) and "string" in kinds and "enum" not in plain and "const" not in plain:
        yield _text_form({**plain, "type": "string"}, root)
        if others := [kind for kind in kinds if kind != "string"]:
            yield AsJson(_alone({**plain, "type": others}, root))
    else:
        yield AsJson(_alone(value, root))


def _choices(choices: Sequence[Any], *, text_only: bool) -> Iterator[Form]:
    texts = tuple(dict.fromkeys(choice for choice in choices if isinstance(choice, str)))
    others = [choice for choice in choices if not isinstance(choice, str)]
    if texts:
        yield Written(choices=texts)
    if others and not text_only:
        yield AsJson({"enum": others})
    if not texts and (text_only or not others):
        yield AsJson({"enum": []})


def _text_form(schema: Json, root: Json) -> Form:
    """A string as it is where that can be said by expressions, else as JSON."""
    patterns = [ANY_TEXT]
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if low or high is not None:
        patterns.append(f"(?s:.{{{low},{'' if high is None else high}}})")
    if "pattern" in schema:
        whole = _whole_pattern(schema["pattern"])
        if whole is None:
            return AsJson(_alone(schema, root))
        patterns.append(f"({expression(whole)})")
    if "format" in schema:
        if schema["format"] not in _FORMATS:
            return AsJson(_alone(schema, root))
        patterns.append(f"({expression(_FORMATS[schema['format']])})")
    return AsJson(_alone(schema, root)) if set(schema) - _STRING else Written(tuple(patterns))


def _whole_pattern(pattern: Any) -> str | None:
    """What stands between the anchors of an expression, if it has both and one meaning; else None."""
    if not isinstance(pattern, str) or not (pattern.startswith("^") and pattern.endswith("$")):
        return None
    inner = pattern[1:-1]
    # what depends on where it stands, or on what the end belongs to, is left to JSON
    return None if _PLACED.search(inner) or inner.endswith("\\") else inner


def _alone(schema: Json, root: Json) -> Json:
    """The schema with the definitions that it may refer to."""
    return {**schema, **{name: root[name] for name in ("$defs", "definitions") if name in root}}


def _referred(pointer: Any, root: Json) -> Any:
    if not isinstance(pointer, str) or not pointer.startswith("#/"):
        return None
    found: Any = root
    for step in pointer[2:].split("/"):
        if not isinstance(found, Mapping):
            return None
        found = found.get(step.replace("~1", "/").replace("~0", "~"))
    return found
