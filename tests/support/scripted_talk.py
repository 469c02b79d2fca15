"""What a model writes when clients are tried: words, thoughts, a call, JSON or nothing, by what it is asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from baleen.errors import BaleenError, NotReady, QueueFull

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HELLO = "Hello, größe 🐳 STOP more."
MILD = "Mild."
JSON = '{"city": "Köln", "degrees": 12}'

_END = "</｜DSML｜invoke>\n</｜DSML｜function_calls>"


def parameter(name: str, value: str, *, text: bool = True) -> str:
    """One argument of a call."""
    return f'<｜DSML｜parameter name="{name}" string="{str(text).lower()}">{value}</｜DSML｜parameter>\n'


PARAMETER = parameter("city", "Köln") + _END
CALL = f'\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n{PARAMETER}'
FORCED = parameter("city", "Köln") + parameter("degrees", "12", text=False) + _END
"""The arguments of JSON, where a client makes its schema a tool."""


def reply(prompt: str) -> str | BaleenError | None:
    """By the last question: unavailable, weather (with tools), broken, silence, JSON where its prompt has a schema."""
    thought = "I see.</think>" if prompt.endswith("<think>") else ""
    if prompt.endswith('invoke name="get_weather">\n'):
        return PARAMETER
    if prompt.endswith('">\n'):
        return FORCED
    if prompt.endswith('invoke name="'):
        return f'get_weather">\n{PARAMETER}'
    if prompt.endswith(("</function_results>\n\n</think>", "</function_results>\n\n<think>")):
        return f"{thought}{MILD}"
    question = prompt.rpartition("<｜User｜>")[2]
    if "unavailable" in question:
        return NotReady("no rank can take it")
    if "silence" in question:
        return None
    if "weather" in question and "## Tools" in prompt:
        return f"{thought}Let me look.{CALL}"
    if "broken" in question:
        return f"{thought}Oh.{CALL[:-60]}"
    if "json" in prompt.lower() or "## Response Format" in prompt:
        return f"{thought}{JSON}"
    return f"{thought}{HELLO}"


def with_refusals() -> Callable[[str], str | BaleenError | None]:
    """The same, which refuses a throng by 429 with a time, and of a crowd every other question."""
    turns = itertools.count()

    def talk(prompt: str) -> str | BaleenError | None:
        if "throng" in prompt or ("crowd" in prompt and next(turns) % 2 == 0):
            return QueueFull("too many requests wait", retry_after_s=0.01)
        return reply(prompt)

    return talk
