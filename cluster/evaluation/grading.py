"""Whether an answer is right, by family."""

from __future__ import annotations

import json
from collections.abc import Callable

from baleen.text.encoding_v32 import Message
from cluster.evaluation.instances import Instance


def is_right(instance: Instance, got: Message) -> bool:
    """Whether a message is a right answer."""
    return _GRADERS.get(instance.family, _same_content)(instance.expected, got)


def _same_content(expected: Message, got: Message) -> bool:
    return got.content.strip() == expected.content.strip() and not got.tool_calls


def _same_number(expected: Message, got: Message) -> bool:
    """The number after the last equals sign."""
    return got.content.rpartition("=")[2].strip() == expected.content.rpartition("=")[2].strip()


def _same_calls(expected: Message, got: Message) -> bool:
    """The same tools with the same arguments, in order; types count."""
    try:
        return [(call.name, _strict(call.arguments)) for call in got.tool_calls] == [
            (call.name, _strict(call.arguments)) for call in expected.tool_calls
        ]
    except ValueError:
        return False


def _same_json(expected: Message, got: Message) -> bool:
    try:
        return _strict(got.content) == _strict(expected.content)
    except ValueError:
        return False


def _strict(text: str) -> str:
    """Canonical JSON, so that 1, 1.0 and true are different things and the order of keys is not."""
    return json.dumps(json.loads(text), sort_keys=True)


_GRADERS: dict[str, Callable[[Message, Message], bool]] = {
    "arithmetic": _same_number,
    "tools": _same_calls,
    "json": _same_json,
}
