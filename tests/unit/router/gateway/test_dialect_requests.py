"""Requests of the Responses and Messages dialects: the chat that they become, and refusals that name the field."""

import pytest
from openai.types.responses import Response

from baleen.errors import InvalidRequest
from router.gateway.messages import request as messages
from router.gateway.responses import request as responses

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_items_of_one_answer_become_one_message():
    items = [
        {"role": "user", "content": "go"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "why"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "R"}]},
        {"type": "function_call_output", "call_id": "c1", "output": "R"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "then"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "R"},
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "two"}]},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "end"}]},
    ]
    chat = responses.to_chat({"model": "m", "input": items, "instructions": "S"})
    result = {"role": "tool", "tool_call_id": "c1", "content": "R"}
    assert chat["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "so", "reasoning_content": "why", "tool_calls": [CALL, CALL]},
        result,
        result,
        {"role": "assistant", "content": "", "reasoning_content": "then", "tool_calls": [CALL]},
        result,
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "developer", "content": "end"},
    ]


def test_options_of_a_response_become_those_of_a_chat():
    body = {
        "model": "m",
        "input": "hi",
        "max_output_tokens": 20,
        "temperature": 0.5,
        "stream": True,
        "reasoning": {"effort": "low", "summary": "auto"},
        "tools": [{"type": "function", "name": name, "parameters": SCHEMA, "strict": True} for name in "fg"],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    }
    function = {"name": "g", "parameters": SCHEMA, "strict": True}
    assert responses.to_chat(body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 20,
        "temperature": 0.5,
        "stream": True,
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    }
    named = responses.to_chat(body | {"tool_choice": {"type": "function", "name": "f"}})
    assert named["tool_choice"] == {"type": "function", "function": {"name": "f"}} and len(named["tools"]) == 2
    base = responses.base_response(body, response_id="resp_1", created_at=1, model="m")
    shown = Response.model_validate(base)
    assert shown.tools[1].strict and shown.text.format.name == "n" and shown.reasoning.effort == "low"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stream": 1}, "stream"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "regex"}}}, "text.format.type"),
        ({"user": "x" * 513}, "user"),
    ],
)
def test_a_wrong_field_of_a_response_is_named(fields, field):
    with pytest.raises(InvalidRequest) as caught:
        responses.to_chat({"model": "m", "input": "hi"} | fields)
    assert caught.value.field == field and field in str(caught.value)


def test_blocks_become_messages_with_results_first():
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    body = {
        "model": "m",
        "max_tokens": 5,
        "system": [
            {"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "T"},
        ],
        "messages": [
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "why", "signature": ""},
                    {"type": "redacted_thinking", "data": "?"},
                    {"type": "text", "text": "so"},
                    call,
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "now"},
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "R"}]},
                ],
            },
            {"role": "assistant", "content": "begin"},
        ],
    }
    assert messages.to_chat(body)["messages"] == [
        {"role": "system", "content": "S\n\nT"},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "so", "reasoning_content": "why", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "R"},
        {"role": "user", "content": "now"},
        {"role": "assistant", "content": "begin", "prefix": True},
    ]


def test_options_of_a_message_become_those_of_a_chat():
    body = {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
        "stop_sequences": ["END"],
        "top_k": 3,
        "thinking": {"type": "adaptive", "budget_tokens": 9},
        "metadata": {"user_id": "u"},
        "tools": [{"name": "f", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
    }
    assert messages.to_chat(body) == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": "hi"}],
        "stop": ["END"],
        "top_k": 3,
        "thinking": {"type": "enabled"},
        "thinking_token_budget": 9,
        "user_id": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "high",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": SCHEMA, "strict": True},
        },
    }
    counted = {name: body[name] for name in ("model", "messages", "tools")}
    assert "max_tokens" not in messages.to_chat(counted, messages.COUNTED_FIELDS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": "x"}]}]},
            "messages[0].content[0].input",
        ),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    ],
)
def test_a_wrong_field_of_a_message_is_named(fields, field):
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]} | fields
    with pytest.raises(InvalidRequest) as caught:
        messages.to_chat(body)
    assert caught.value.field == field and field in str(caught.value)
