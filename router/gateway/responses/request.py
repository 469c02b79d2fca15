"""A request in the Responses dialect: its fields, what they become in a chat, and what the response repeats of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baleen.errors import InvalidRequest
from router.gateway.fields import MAX_ITEMS, MAX_TEXT, Field, check
from router.gateway.responses.items import to_messages

Json = dict[str, Any]

FIELDS = (
    Field(name="model", kind="string", required=True, longest=256, effect="A name of GET /v1/models."),
    Field(name="input", kind="string or array", required=True, longest=MAX_TEXT, effect="A text, or the items so far."),
    Field(name="instructions", kind="string", longest=MAX_TEXT, effect="System text before the input."),
    Field(name="max_output_tokens", kind="integer", low=1, effect="Most tokens to generate, reasoning included."),
    Field(name="temperature", kind="number", low=0, high=2, effect="0 always takes the likeliest token."),
    Field(name="top_p", kind="number", low=0, above_low=True, high=1, effect="Share of probability to sample from."),
    Field(name="presence_penalty", kind="number", low=-2, high=2, effect="Against tokens that were generated."),
    Field(name="frequency_penalty", kind="number", low=-2, high=2, effect="The same, for each time."),
    Field(name="stream", kind="boolean", effect="Events as the answer comes."),
    Field(name="resumable", kind="boolean", effect="A stream that is cut can be gone on with: see Streams."),
    Field(name="stream_options", kind="object", longest=8, effect="Accepted: there is no obfuscation to switch."),
    Field(name="tools", kind="array", longest=128, effect="Functions that the model may call."),
    Field(name="tool_choice", kind="string or object", longest=64, effect="none, auto, required, or which function."),
    Field(name="parallel_tool_calls", kind="boolean", effect="False: at most one call."),
    Field(name="max_tool_calls", kind="integer", low=1, effect="Repeated in the answer: it counts built-in tools."),
    Field(name="text", kind="object", longest=8, effect="format: text, json_object or json_schema."),
    Field(name="reasoning", kind="object", longest=8, effect="effort: none switches thinking off, others on."),
    Field(name="top_logprobs", kind="integer", low=0, high=0, effect="Chat completions have log-probabilities."),
    Field(name="include", kind="array", longest=16, effect="Accepted: reasoning always comes as text."),
    Field(name="metadata", kind="object", longest=16, effect="Repeated in the answer."),
    Field(name="store", kind="boolean", effect="Accepted: nothing is ever stored."),
    Field(name="truncation", kind="string", choices=("disabled",), effect="An input that is too long is refused."),
    Field(name="service_tier", kind="string", longest=64, effect="Accepted."),
    Field(name="user", kind="string", longest=512, effect="Accepted."),
    Field(name="safety_identifier", kind="string", longest=512, effect="Repeated in the answer."),
    Field(name="prompt_cache_key", kind="string", longest=512, effect="Repeated in the answer."),
)
"""Fields of POST /v1/responses; others are ignored."""

_TOOL = (
    Field(name="type", kind="string", required=True, choices=("function",), effect="Functions only."),
    Field(name="name", kind="string", required=True, longest=64, effect="What the model calls it."),
    Field(name="description", kind="string", longest=MAX_TEXT, effect="What the model is told of it."),
    Field(name="parameters", kind="object", longest=MAX_ITEMS, effect="JSON schema of its arguments."),
    Field(name="strict", kind="boolean", effect="The arguments keep to the schema."),
)
_STATEFUL = {
    "previous_response_id": "responses are not stored: send the whole input",
    "conversation": "conversations are not stored: send the whole input",
    "prompt": "prompts are not stored: send the whole input",
    "background": "a response cannot go on without its connection",
}
_SAME = ("model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stream", "parallel_tool_calls")


def to_chat(body: Mapping[str, Any]) -> Json:
    """The body of the same request in the chat dialect. Raises InvalidRequest that names the field."""
    for name, reason in _STATEFUL.items():
        if body.get(name):
            raise InvalidRequest(f"{name} cannot be used: {reason}", field=name)
    given = check(body, FIELDS)
    chat: Json = {name: given[name] for name in _SAME if name in given}
    messages = to_messages(given["input"])
    if "instructions" in given:
        messages.insert(0, {"role": "system", "content": given["instructions"]})
    chat["messages"] = messages
    if "max_output_tokens" in given:
        chat["max_tokens"] = given["max_output_tokens"]
    effort = given.get("reasoning", {}).get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    if "tools" in given:
        chat["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(given["tools"])]
    if "tool_choice" in given:
        _choose(chat, given["tool_choice"])
    response_format = _format(given.get("text", {}))
    if response_format is not None:
        chat["response_format"] = response_format
    return chat


def base_response(body: Mapping[str, Any], *, response_id: str, created_at: int, model: str) -> Json:
    """The response object before anything is generated: it repeats what was asked for, with defaults."""
    text = dict(body.get("text") or {})
    text["format"] = _shown_format(text.get("format") or {"type": "text"})
    reasoning = body.get("reasoning") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "model": model,
        "output": [],
        "parallel_tool_calls": _or(body.get("parallel_tool_calls"), True),
        "previous_response_id": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": _or(body.get("temperature"), 1.0),
        "text": text,
        "tool_choice": _or(body.get("tool_choice"), "auto"),
        "tools": [_shown_tool(tool) for tool in body.get("tools") or ()],
        "top_logprobs": 0,
        "top_p": _or(body.get("top_p"), 1.0),
        "presence_penalty": _or(body.get("presence_penalty"), 0.0),
        "frequency_penalty": _or(body.get("frequency_penalty"), 0.0),
        "truncation": "disabled",
        "usage": None,
        "metadata": body.get("metadata") or {},
        # the only one that may not be null
        **({"user": body["user"]} if isinstance(body.get("user"), str) else {}),
    }


def _tool(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} is {type(tool).__name__}, must be an object", field=where)
    given = check(tool, _TOOL, where)
    return {"type": "function", "function": {name: given[name] for name in given if name != "type"}}


def _choose(chat: Json, choice: str | Json) -> None:
    """A tool choice; where only some tools are allowed, the model is told of no others."""
    if isinstance(choice, str):
        chat["tool_choice"] = choice
    elif choice.get("type") == "function":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        allowed = [tool.get("name") for tool in choice["tools"] if isinstance(tool, dict)]
        chat["tools"] = [tool for tool in chat.get("tools", ()) if tool["function"]["name"] in allowed]
        chat["tool_choice"] = choice.get("mode") or "auto"
    else:
        problem = f"tool_choice.type is {choice.get('type')!r}, must be function or allowed_tools"
        raise InvalidRequest(problem, field="tool_choice.type")


def _format(text: Json) -> Json | None:
    form = text.get("format")
    if form is None:
        return None
    if not isinstance(form, dict):
        raise InvalidRequest(f"text.format is {type(form).__name__}, must be an object", field="text.format")
    kind = form.get("type")
    if kind == "json_schema":
        schema = {
            name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None
        }
        return {"type": "json_schema", "json_schema": schema}
    if kind in ("text", "json_object"):
        return {"type": kind}
    problem = f"text.format.type is {kind!r}, must be text, json_object or json_schema"
    raise InvalidRequest(problem, field="text.format.type")


def _shown_format(form: Json) -> Json:
    if form.get("type") != "json_schema":
        return {"type": form.get("type")}
    # a text even where none was given: some ask for one that may be null, others for none or one that may not
    given = {name: value for name, value in form.items() if value is not None}
    return {"description": "", "name": "", "schema": {}} | given | {"strict": bool(form.get("strict"))}


def _shown_tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": None} | tool


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
