"""Fields of request bodies: type, range, length and meaning, in tables that check requests and make documents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from baleen.errors import InvalidRequest

Kind = Literal["string", "integer", "number", "boolean", "array", "object", "string or array", "string or object"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}

MAX_TEXT = 10_485_760
"""Characters of one text."""

MAX_ITEMS = 10_000
"""Messages, items or blocks of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field. low and high: range of a number. longest: characters of a string, elements of an array or object.

    effect: what it does, for people. A field that is null is absent.
    """

    name: str
    kind: Kind
    effect: str
    required: bool = False
    low: float | None = None
    high: float | None = None
    above_low: bool = False
    longest: int | None = None
    choices: tuple[str, ...] = ()


def check(body: Mapping[str, Any], table: Sequence[Field], where: str = "") -> dict[str, Any]:
    """The fields of the table that the body has. Raises InvalidRequest that names the first wrong one."""
    found: dict[str, Any] = {}
    for field in table:
        name = f"{where}.{field.name}" if where else field.name
        value = body.get(field.name)
        if value is not None:
            _check_one(value, field, name)
            found[field.name] = value
        elif field.required:
            raise InvalidRequest(f"{name} is missing", field=name)
    return found


def _check_one(value: Any, field: Field, name: str) -> None:
    types = tuple(kind for part in field.kind.split(" or ") for kind in _TYPES[part])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InvalidRequest(f"{name} is {type(value).__name__}, must be {_article(field.kind)}", field=name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(value, field, name)
    elif isinstance(value, (str, list, dict)):
        if field.longest is not None and len(value) > field.longest:
            unit = "characters" if isinstance(value, str) else "elements"
            raise InvalidRequest(f"{name} has {len(value)} {unit}, at most {field.longest} are allowed", field=name)
        if field.choices and isinstance(value, str) and value not in field.choices:
            raise InvalidRequest(f"{name} is {value[:40]!r}, must be one of {', '.join(field.choices)}", field=name)


def _check_range(value: float, field: Field, name: str) -> None:
    low, high = field.low, field.high
    wrong = isinstance(value, float) and not math.isfinite(value)
    wrong = wrong or (low is not None and (value < low or (field.above_low and value == low)))
    if wrong or (high is not None and value > high):
        least = "" if low is None else f" {'above' if field.above_low else 'at least'} {low:g}"
        most = "" if high is None else f"{' and' if least else ''} at most {high:g}"
        raise InvalidRequest(f"{name} is {str(value)[:40]}, must be{least}{most}", field=name)


def _article(kind: str) -> str:
    return " or ".join(f"an {part}" if part[0] in "aio" else f"a {part}" for part in kind.split(" or "))
