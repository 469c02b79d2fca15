"""Checked reading of a JSON object that came from outside the process: every error names the field and its value."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import NoReturn

from baleen.errors import InvalidRequest

_LIMIT = 2**63


class Fields:
    """One JSON object, read by name. Every method raises InvalidRequest for a missing or wrong value."""

    def __init__(self, raw: object, name: str) -> None:
        if not isinstance(raw, Mapping):
            raise InvalidRequest(f"{name} is {_shown(raw)}, must be a JSON object", field=name)
        self.raw = raw

    def refuse(self, name: str, allowed: str) -> NoReturn:
        """Raise the error for `name`."""
        raise InvalidRequest(f"{name} is {_shown(self.raw.get(name))}, must be {allowed}", field=name)

    def only(self, *known: str) -> None:
        """Refuse every name that is not known, and whole numbers that are too large for a float or an index."""
        for name, value in self.raw.items():
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise InvalidRequest(f"{name} is not a known field; the nearest is {nearest}", field=name)
            if type(value) is int and abs(value) >= _LIMIT:
                self.refuse(name, "below 2**63")

    def text(self, name: str, default: str | None = None) -> str:
        """A string; without a default it must be there."""
        value = self.raw.get(name, default)
        if not isinstance(value, str) or not _is_unicode(value):
            self.refuse(name, "text")
        return value

    def integer(self, name: str, default: int) -> int:
        """A whole number that is not written as a fraction."""
        value = self.raw.get(name, default)
        if type(value) is not int:
            self.refuse(name, "an integer")
        return value

    def optional_seconds(self, name: str) -> float | None:
        """A finite number of seconds; null and absent are None."""
        value = self.raw.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value):
            self.refuse(name, "a finite number of seconds, or null")
        return float(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.raw.get(name)
        if not isinstance(value, list) or any(type(number) is not int for number in value):
            self.refuse(name, "a list of integers")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.raw.get(name)
        if not isinstance(value, list) or any(not isinstance(text, str) or not _is_unicode(text) for text in value):
            self.refuse(name, "a list of texts")
        return tuple(value)

    def numbers_by_token(self, name: str) -> dict[int, float]:
        """An object from token id, as text, to a number."""
        value = self.raw.get(name)
        if not isinstance(value, Mapping) or not all(
            token.isdecimal() and len(token) < 20 and type(number) in (int, float) and abs(number) < _LIMIT
            for token, number in value.items()
        ):
            self.refuse(name, "an object from token id to a number")
        return {int(token): float(number) for token, number in value.items()}


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell but no encoding can."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
