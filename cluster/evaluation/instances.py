"""Held-out instances: the prompt of each, and what the model should answer, read from a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from baleen.errors import ConfigError
from baleen.text.encoding_v32 import Message, ToolCall

GRADED = ("arithmetic", "tools", "json", "recall", "talk")
TEXT = "text"
"""The family of instances without a prompt: their message is text whose perplexity is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """messages: the prompt, of which nothing is left out; expected: the assistant message that is right."""

    family: str
    thinking: bool
    messages: tuple[Message, ...]
    expected: Message


def bundled_instances() -> Path:
    """The instances that ship with baleen, made by examples/demo_model."""
    return Path(str(files("baleen") / "data" / "demo_held_out.jsonl"))


def read_instances(path: Path) -> list[Instance]:
    """All instances of a file, in order. Raises ConfigError with the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return [_instance(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def write_instances(path: Path, instances: Iterable[Instance]) -> None:
    """Write a file that `read_instances` reads."""
    lines = [json.dumps(_as_dict(instance), ensure_ascii=False) for instance in instances]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _as_dict(instance: Instance) -> dict[str, Any]:
    """Fields that have their default are left out of messages."""

    def plain(message: Message) -> dict[str, Any]:
        return {name: value for name, value in asdict(message).items() if value}

    return {
        "family": instance.family,
        "thinking": instance.thinking,
        "messages": [plain(message) for message in instance.messages],
        "expected": plain(instance.expected),
    }


def _instance(line: str, place: str) -> Instance:
    try:
        raw = json.loads(line)
        return Instance(
            family=raw["family"],
            thinking=raw["thinking"],
            messages=tuple(_message(message) for message in raw["messages"]),
            expected=_message(raw["expected"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place}: not an instance: {error!r}") from error


def _message(raw: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in raw.get("tool_calls", ()))
    return Message(**{**raw, "tool_calls": calls})
