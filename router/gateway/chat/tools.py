"""Tools of the chat dialect: what the model is told of, and whether it must call one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baleen.errors import InvalidRequest
from baleen.text.call_forms import ToolForm
from router.gateway.fields import MAX_ITEMS, MAX_TEXT, Field, check

Json = Mapping[str, Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_TOOL = (
    Field(name="type", kind="string", required=True, choices=("function",), effect="Functions only."),
    Field(name="function", kind="object", required=True, longest=16, effect="name, description, parameters."),
)
_FUNCTION = (
    Field(name="name", kind="string", required=True, longest=64, effect="Letters, digits, _ and -."),
    Field(name="description", kind="string", longest=MAX_TEXT, effect="What the model is told of it."),
    Field(name="parameters", kind="object", longest=MAX_ITEMS, effect="JSON schema of its arguments."),
    Field(name="strict", kind="boolean", effect="The arguments keep to the schema."),
)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """offered: function objects. forced: None: the model may call; a name: it must call that; empty: any of them.

    strict: names of those whose arguments keep to their schema. one_call: at most one call.
    """

    offered: tuple[Json, ...] = ()
    forced: str | None = None
    strict: frozenset[str] = frozenset()
    one_call: bool = False

    def forms(self) -> list[ToolForm]:
        """What may be called. Where the model must call, all arguments keep to their schemas."""
        return [
            ToolForm(
                tool["name"],
                tool.get("parameters", {}) if self.forced is not None or tool["name"] in self.strict else None,
                f"tools[{place}].function.parameters",
            )
            for place, tool in enumerate(self.offered)
        ]


def read_tools(given: Json) -> ToolUse:
    """The tools of a checked body. Raises InvalidRequest that names the field."""
    offered = tuple(_function(tool, f"tools[{place}]") for place, tool in enumerate(given.get("tools", ())))
    names = {str(function["name"]) for function in offered}
    if len(names) < len(offered):
        raise InvalidRequest("Tool names must be unique.", field="tools")
    strict = frozenset(
        tool["function"]["name"] for tool in given.get("tools", ()) if tool["function"].get("strict") is True
    )
    one_call = given.get("parallel_tool_calls") is False
    choice = given.get("tool_choice", "auto")
    if choice == "none":
        return ToolUse()
    if choice == "auto":
        return ToolUse(offered, None, strict, one_call)
    name = ""
    if choice != "required":
        function = choice.get("function") if isinstance(choice, dict) else None
        found = function.get("name") if isinstance(function, dict) else None
        if not isinstance(found, str):
            problem = "tool_choice must be none, auto, required, or an object that names a function"
            raise InvalidRequest(problem, field="tool_choice")
        name = found
        if name not in names:
            problem = f"no function named '{name[:64]}' was specified in the 'tools' parameter."
            raise InvalidRequest(f"Invalid value for 'tool_call': {problem}", field="tool_choice")
    if not offered:
        raise InvalidRequest("tool_choice is required, but there are no tools", field="tool_choice")
    return ToolUse(offered, name or (next(iter(names)) if len(names) == 1 else ""), strict, one_call or bool(name))


def _function(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"{where} is {type(tool).__name__}, must be an object", field=where)
    function: Json = check(tool, _TOOL, where)["function"]
    found = check(function, _FUNCTION, f"{where}.function")
    if not _NAME.fullmatch(found["name"]):
        name = f"{where}.function.name"
        raise InvalidRequest(
            f"Invalid '{name}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
            field=name,
        )
    # the model sees name, description and parameters, in the order in which they came
    return {name: value for name, value in function.items() if name in found and name != "strict"}
