"""Bodies with anything anywhere: every dialect makes an ask of them, or refuses them with the name of a field."""

import asyncio
import copy
from random import Random
from types import SimpleNamespace

import pytest

from baleen.errors import InvalidRequest
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import Tokenizer
from router.gateway.chat.reader import read_chat
from router.gateway.chat.request import ChatLimits
from router.gateway.forms import Forms
from router.gateway.messages.reader import count_tokens, read_message
from router.gateway.models import ModelNames
from router.gateway.responses.reader import read_response
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
NUM_BODIES = 1500
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CHAT = {
    "model": "deepseek-chat",
    "messages": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "json"}]},
        {
            "role": "assistant",
            "reasoning_content": "r",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "R"},
        {"role": "assistant", "content": "x", "prefix": True},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "thinking": {"type": "disabled"},
    "chat_template_kwargs": {"thinking": True},
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["x"],
    "logit_bias": {"5": 1},
    "stop_token_ids": [4],
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "n": 2,
    "seed": 3,
    "reasoning_effort": "low",
    "user_id": "u",
}
RESPONSE = {
    "model": "deepseek-chat",
    "instructions": "S",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "R"},
    ],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "reasoning": {"effort": "none", "summary": "auto"},
    "max_output_tokens": 5,
    "metadata": {"a": "b"},
    "temperature": 1,
}
MESSAGE = {
    "model": "deepseek-chat",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "S"}],
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "R"}]},
    ],
    "tools": [{"name": "f", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "disabled"},
    "metadata": {"user_id": "u"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "stop_sequences": ["x"],
    "top_k": 3,
}
ANYTHING = [
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, float("inf"), float("nan"), "", "x", "\ud800", "f", "none",
    "required", "json_object", "enabled", [], [None], [[]], [{}], ["x"], {}, {"type": None}, {"type": "text"},
    {"type": []}, {"type": {"a": 1}}, {"name": {}}, {"x": [1]}, {"type": "function", "function": {"name": ["f"]}},
]  # fmt: skip


async def encode(text):
    return TOKENIZER.encode(text)


GATEWAY = SimpleNamespace(
    engine=SimpleNamespace(format=FORMATS["deepseek-v3.2"], encode=encode, tokenizer=TOKENIZER, forms=Forms()),
    names=ModelNames("baleen"),
    limits=ChatLimits(),
    max_context=10_000,
    fingerprint="fp",
)


def places(value):
    """Every place below a value: its container and key."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        found += places(inner)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "body"),
    [(read_chat, CHAT), (read_response, RESPONSE), (read_message, MESSAGE), (count_tokens, MESSAGE)],
    ids=["chat", "responses", "messages", "count_tokens"],
)
def test_an_ask_or_a_refusal_that_names_a_field(reader, body):
    assert asyncio.run(reader(copy.deepcopy(body), GATEWAY))
    refused = 0
    for seed in range(NUM_BODIES):
        random = Random(seed)
        changed = copy.deepcopy(body)
        for _ in range(random.choice((1, 1, 2, 3))):
            container, key = random.choice(places(changed))
            if random.random() < 0.1:
                del container[key]
                break
            container[key] = copy.deepcopy(random.choice(ANYTHING))
        try:
            asyncio.run(reader(changed, GATEWAY))
        except InvalidRequest as error:
            assert error.field, changed
            refused += 1
    assert NUM_BODIES // 3 < refused < NUM_BODIES
