"""Configuration files: from JSON to the frozen dataclasses of `baleen.config`, and back."""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from baleen.config import RankConfig
from baleen.errors import ConfigError

Config = TypeVar("Config")

_EXPECTED = {str: "text", int: "an integer", float: "a finite number", bool: "true or false"}


def load_rank_config(path: Path) -> RankConfig:
    """Read a rank's configuration from a JSON file. Raises ConfigError that names the file, the key and the value."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    try:
        return from_dict(RankConfig, raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def from_dict(kind: type[Config], raw: object, *, key: str = "") -> Config:
    """Build a configuration dataclass from plain JSON values. `key` is the place of `raw` in the whole, for errors.

    Raises ConfigError on an unknown key (and names the nearest), a missing key, a wrong type, or a value that the
    dataclass itself refuses.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{key or 'the configuration'} is {_shown(raw)}, must be an object")
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for name in raw:
        if name not in known:
            raise ConfigError(_unknown(_path(key, str(name)), [_path(key, other) for other in known]))
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in raw:
            values[name] = _read(hints[name], raw[name], _path(key, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{_path(key, name)} is missing")
    return kind(**values)


def to_dict(config: object) -> dict[str, Any]:
    """The plain JSON values of a configuration dataclass; `from_dict` gives an equal one back."""
    assert is_dataclass(config) and not isinstance(config, type)
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: object) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return to_dict(value) if is_dataclass(value) else value


def _read(kind: Any, value: object, key: str) -> Any:
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return from_dict(kind, value, key=key)
    origin = get_origin(kind)
    if origin is Literal:
        choices = get_args(kind)
        if value not in choices or isinstance(value, bool):
            raise ConfigError(f"{key} is {_shown(value)}, must be one of {', '.join(choices)}")
        return value
    if origin is tuple:
        inner, _ = get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} is {_shown(value)}, must be a list")
        return tuple(_read(inner, one, f"{key}[{place}]") for place, one in enumerate(value))
    if origin in (Union, types.UnionType):
        assert type(None) in get_args(kind) and len(get_args(kind)) == 2, "an optional value has one type beside None"
        inner = next(part for part in get_args(kind) if part is not type(None))
        return None if value is None else _read(inner, value, key)
    if kind is float and type(value) is int:
        value = float(value)
    # `type`, not isinstance: true is no integer here
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{key} is {_shown(value)}, must be {_EXPECTED[kind]}")
    return value


def _unknown(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{key} is not a known key; the nearest is {nearest[0]}"


def _path(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _shown(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"key {repeated!r} stands twice in one object")
    return values
