"""What others say the API is: their specifications, cut to what the gateway serves, with models that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.client_programs import REPO

Json = dict[str, Any]

MODELS = ["deepseek-v3.2", "deepseek-reasoner"]

# Anthropic's stand under /anthropic: GET /v1/models answers in OpenAI's form
_OPERATIONS = {
    "openai_chat": {
        "/chat/completions": "post",
        "/completions": "post",
        "/responses": "post",
        "/models": "get",
        "/models/{model}": "get",
    },
    "anthropic": {
        "/v1/messages": "post",
        "/v1/messages/count_tokens": "post",
        "/v1/models": "get",
        "/v1/models/{model_id}": "get",
    },
}
# where a schema has a choice, what the gateway takes of it
_SERVED_CHOICES = {
    "ChatCompletionRequestMessage": ("DeveloperMessage", "SystemMessage", "UserMessage", "AssistantMessage"),
    "ChatCompletionRequestUserMessageContentPart": ("PartText",),
    "InputItem": ("EasyInputMessage",),
    "InputContent": ("InputTextContent",),
    "InputContentBlock": ("RequestTextBlock",),
    "Tool": ("FunctionTool",),
}
_REQUESTS = {
    *("CreateChatCompletionRequest", "ChatCompletionRequestAssistantMessage", "CreateCompletionRequest"),
    *("CreateResponse", "ResponseProperties", "CreateMessageParams", "CountMessageTokensParams"),
}
# what makes most calls wrong by accident: it needs others beside it, or is not served
_RARE_PROPERTIES = {
    *("audio", "modalities", "web_search_options", "functions", "function_call", "prediction", "logit_bias"),
    *("tool_choice", "tool_calls", "tools", "stream_options", "top_logprobs", "previous_response_id", "best_of"),
    *("output_config", "include", "echo", "suffix"),
}
_TOKENS = {"type": "integer", "minimum": 1, "maximum": 60_000, "nullable": True}
# limits of the gateway that specifications do not know
_LIMITS: dict[str, Json] = {
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "max_output_tokens": _TOKENS,
    "n": {"type": "integer", "minimum": 1, "maximum": 8},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    "top_p": {"type": "number", "minimum": 0.01, "maximum": 1, "nullable": True},
    "top_k": {"type": "integer", "minimum": 0, "maximum": 1000},
    "truncation": {"type": "string", "enum": ["disabled"]},
    "prompt": {"type": "string", "minLength": 1},
}
_MODEL_SCHEMAS = {"openai_chat": ("ModelIdsShared", "ModelIdsResponses"), "anthropic": ("Model",)}


def write_spec(name: str, path: Path, *, served: bool) -> None:
    """Write the cut specification `openai_chat` or `anthropic`. served: its requests ask for what is served only."""
    (source,) = (REPO / ".cache" / "clients" / "suites").glob(f"lib/*/site-packages/llm_comply/specs/{name}.json")
    spec = json.loads(source.read_text())
    wanted = _OPERATIONS[name]
    spec["paths"] = {place: {method: spec["paths"][place][method]} for place, method in wanted.items()}
    model: Json = {"type": "string", "enum": MODELS}
    schemas = spec["components"]["schemas"]
    for one in _MODEL_SCHEMAS[name]:
        schemas[one] = model
    if name == "openai_chat":
        schemas["CreateCompletionRequest"]["properties"]["model"] = model
        spec["paths"]["/models/{model}"]["get"]["parameters"][0]["schema"] = model
    for place, method in wanted.items():
        responses = spec["paths"][place][method]["responses"]
        if name == "openai_chat":
            # it says nothing of errors
            shape = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}
            responses["default"] = {"description": "An error.", "content": {"application/json": shape}}
        if method == "post":
            # of some it does not say that they stream; events are no JSON, and the clients check them
            responses["200"]["content"]["text/event-stream"] = {}
    if served:
        _cut_requests(schemas)
    path.write_text(json.dumps(spec))


def _cut_requests(schemas: Json) -> None:
    for name, kept in _SERVED_CHOICES.items():
        choice = schemas.get(name, {})
        if "oneOf" in choice:
            choice["oneOf"] = [one for one in choice["oneOf"] if one["$ref"].endswith(kept)]
            choice.pop("discriminator", None)
    for name, schema in schemas.items():
        if name in _REQUESTS:
            for part in (schema, *schema.get("allOf", ())):
                fields = part.get("properties", {})
                for field in _RARE_PROPERTIES & fields.keys():
                    del fields[field]
                fields |= {field: _LIMITS[field] for field in _LIMITS.keys() & fields.keys()}
                if "messages" in fields:
                    fields["messages"]["minItems"] = 1
