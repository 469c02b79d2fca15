"""A request in the Messages dialect: its fields, and what they become in a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baleen.budget import MAX_TOKENS
from baleen.errors import InvalidRequest
from baleen.sampling import MAX_SEED
from router.gateway.fields import MAX_ITEMS, MAX_TEXT, Field, check
from router.gateway.messages.blocks import to_messages

Json = dict[str, Any]

COUNTED_FIELDS = (
    Field(name="model", kind="string", required=True, longest=256, effect="A name of GET /v1/models."),
    Field(name="messages", kind="array", required=True, longest=MAX_ITEMS, effect="What was said so far."),
    Field(name="system", kind="string or array", longest=MAX_TEXT, effect="System text, or its blocks."),
    Field(name="tools", kind="array", longest=128, effect="Tools that the model may call."),
    Field(name="tool_choice", kind="object", longest=8, effect="auto, any, none, or which tool."),
    Field(name="thinking", kind="object", longest=8, effect="enabled, adaptive or disabled; budget_tokens end it."),
    Field(name="output_config", kind="object", longest=8, effect="effort, and a format of type json_schema."),
)
"""Fields of POST /v1/messages/count_tokens; others are ignored."""

FIELDS = (
    *COUNTED_FIELDS,
    Field(name="max_tokens", kind="integer", required=True, low=1, effect="Most tokens to generate."),
    Field(name="stream", kind="boolean", effect="Events as the answer comes."),
    Field(name="resumable", kind="boolean", effect="A stream that is cut can be gone on with: see Streams."),
    Field(name="temperature", kind="number", low=0, high=2, effect="0 always takes the likeliest token."),
    Field(name="top_p", kind="number", low=0, above_low=True, high=1, effect="Share of probability to sample from."),
    Field(name="top_k", kind="integer", low=0, effect="Number of tokens to sample from, 0 for all."),
    Field(name="seed", kind="integer", low=0, high=MAX_SEED, effect="The same seed gives the same answer."),
    Field(name="stop_sequences", kind="array", longest=16, effect="Texts that end the answer."),
    Field(name="metadata", kind="object", longest=16, effect="user_id keeps cached prefixes apart."),
    Field(name="service_tier", kind="string", longest=64, effect="Accepted."),
)
"""Fields of POST /v1/messages; others are ignored."""

_TOOL = (
    Field(name="name", kind="string", required=True, longest=64, effect="What the model calls it."),
    Field(name="description", kind="string", longest=MAX_TEXT, effect="What the model is told of it."),
    Field(name="input_schema", kind="object", required=True, longest=MAX_ITEMS, effect="JSON schema of its input."),
    Field(name="type", kind="string", choices=("custom",), effect="Tools that the client runs."),
    Field(name="strict", kind="boolean", effect="The input keeps to the schema."),
)
_BUDGET = (
    Field(name="budget_tokens", kind="integer", low=1, high=MAX_TOKENS, effect="Tokens after which thinking ends."),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = {"enabled": "enabled", "adaptive": "enabled", "disabled": "disabled"}
_SAME = ("model", "temperature", "top_p", "top_k", "seed", "stream", "max_tokens")


def to_chat(body: Mapping[str, Any], fields: Sequence[Field] = FIELDS) -> Json:
    """The body of the same request in the chat dialect. Raises InvalidRequest that names the field."""
    given = check(body, fields)
    chat: Json = {name: given[name] for name in _SAME if name in given}
    chat["messages"] = to_messages(given.get("system"), given["messages"])
    if "stop_sequences" in given:
        chat["stop"] = given["stop_sequences"]
    if "tools" in given:
        chat["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(given["tools"])]
    if "tool_choice" in given:
        _choose(chat, given["tool_choice"])
    if "thinking" in given:
        kind = _one_of(given["thinking"].get("type"), _THINKING, "thinking.type")
        chat["thinking"] = {"type": kind}
        budget = check(given["thinking"], _BUDGET, "thinking").get("budget_tokens")
        if budget is not None:
            chat["thinking_token_budget"] = budget
    user = given.get("metadata", {}).get("user_id")
    if user is not None:
        chat["user_id"] = user
    _configure(chat, given.get("output_config", {}))
    return chat


def _tool(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} is {type(tool).__name__}, must be an object", field=where)
    given = check(tool, _TOOL, where)
    function = {name: given[name] for name in ("name", "description", "strict") if name in given}
    return {"type": "function", "function": function | {"parameters": given["input_schema"]}}


def _choose(chat: Json, choice: Json) -> None:
    kind = choice.get("type")
    if kind == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        chat["tool_choice"] = _one_of(kind, _CHOICES, "tool_choice.type")
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _configure(chat: Json, config: Json) -> None:
    if config.get("effort") is not None:
        chat["reasoning_effort"] = config["effort"]
    form = config.get("format")
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise InvalidRequest("output_config.format must be of type json_schema", field="output_config.format")
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": form.get("schema"), "strict": True},
        }


def _one_of(value: Any, choices: Mapping[str, str], name: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequest(f"{name} is {value!r}, must be one of {', '.join(choices)}", field=name)
    return choices[value]
