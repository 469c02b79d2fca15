"""The library of DeepSeek itself as an oracle: which bodies are refused and how, and the shapes of streams."""

import asyncio
import json

import httpx2
import pytest

from tests.support.client_programs import PROGRAMS, clients_bin, run
from tests.support.http_gateway import http_gateway
from tests.support.scripted_talk import CALL, SCHEMA, reply

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
CALLED = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
ASKED = [*HI, {"role": "assistant", "content": "", "tool_calls": [CALLED]}]
NAMED = {"type": "function", "function": {"name": "other"}}
THINKING = {"thinking": {"type": "enabled"}}


def tool(result):
    return {"role": "tool", "tool_call_id": result, "content": "x"}


def named(name):
    return {"type": "function", "function": {"name": name}}


TAKEN = [
    {"messages": HI},
    {"messages": [*ASKED, tool("c1")]},
    {"messages": HI, "tools": [TOOL], "tool_choice": "none", "user_id": "a b"},
    {"messages": HI, "logprobs": True, "top_logprobs": 20, "stop": ["x"] * 16, "temperature": 2, "top_p": 0.1},
]
SAME_WORDS = [
    {"messages": []},
    {"messages": HI, "stream_options": {"include_usage": True}},
    {"messages": HI, "response_format": {"type": "json_object"}},
    {"messages": HI, "top_logprobs": 2},
    {"messages": HI, "tools": [TOOL, TOOL]},
    {"messages": HI, "tools": [named("a b")]},
    {"messages": HI, "tools": [TOOL], "tool_choice": NAMED},
    {"messages": ASKED},
    {"messages": [*ASKED, *HI]},
    {"messages": [{"role": "assistant", "content": "x", "prefix": True}, *HI]},
]
REFUSED = [
    {},
    {"messages": "x"},
    {"messages": HI, "max_tokens": 0},
    {"messages": HI, "temperature": 3},
    {"messages": HI, "top_p": 0},
    {"messages": HI, "presence_penalty": 3},
    {"messages": HI, "frequency_penalty": -3},
    {"messages": HI, "stop": ["x"] * 17},
    {"messages": HI, "stop": [""]},
    {"messages": HI, "stop": 5},
    {"messages": HI, "response_format": {"type": "x"}},
    {"messages": HI, "response_format": {"type": "json_schema"}},
    {"messages": HI, "logprobs": True, "top_logprobs": 21},
    {"messages": HI, "tools": [{"type": "x", "function": {"name": "a"}}]},
    {"messages": HI, "tools": [TOOL], "tool_choice": "x"},
    {"messages": [{"role": "robot", "content": "x"}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "x"}]}]},
    {"messages": [*HI, tool("c1")]},
    {"messages": [*ASKED, tool("c2")]},
    {"messages": [*ASKED, tool("c1")], **THINKING},
    {"messages": HI, "thinking": {"type": "x"}},
    {"messages": HI, "reasoning_effort": "x"},
    {"messages": HI, "seed": -1},
]
"""Refused by both, in other words: the gateway's name the field, the value and the limit."""

ONLY_HERE = [
    {"messages": HI, "tools": [named("a" * 65)]},
    {"messages": HI, "tool_choice": "required"},
    {"messages": [{"role": "user", "content": "x", "prefix": True}]},
    {"messages": HI, "logprobs": True, **THINKING},
]
ONLY_THERE = [
    {"messages": HI, "n": 2},
    {"messages": HI, "tools": [TOOL], "tool_choice": "required", **THINKING},
    {"messages": [{"role": "developer", "content": "x"}, *HI]},
]
BODIES = [*TAKEN, *SAME_WORDS, *REFUSED, *ONLY_HERE, *ONLY_THERE]


def chat_shape(chunk):
    (choice,) = chunk["choices"]
    calls = [sorted(call) + sorted(call["function"]) for call in choice["delta"].get("tool_calls", ())]
    return [sorted(choice["delta"]), calls, choice["finish_reason"], bool(chunk.get("usage")), sorted(choice)]


def event_shape(event):
    part = event.get("content_block") or event.get("delta") or event.get("item") or event.get("part") or {}
    return [event["type"], part.get("type") if isinstance(part, dict) else None]


def shapes(events, shape):
    """One after the other; runs of equal ones count once, since texts come in other pieces here."""
    found = []
    for event in events:
        if (one := shape(event)) not in found[-1:]:
            found.append(one)
    return found


async def answers(folder):
    """(messages of errors, or None where a body was taken; events of a stream by dialect)."""
    weather = [{"role": "user", "content": "What weather?"}]
    model = {"model": "deepseek-reasoner", "stream": True}
    function = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
    streams = {
        "chat": ("/v1/chat/completions", {"messages": weather, "tools": [TOOL]}),
        "responses": ("/v1/responses", {"input": "What weather?", "tools": [function]}),
        "messages": (
            "/v1/messages",
            {"max_tokens": 900, "messages": weather, "tools": [{"name": "get_weather", "input_schema": SCHEMA}]},
        ),
    }
    async with (
        http_gateway(reply, folder, missing_reasoning="reject") as served,
        httpx2.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        said = [await client.post("/v1/chat/completions", json={"model": "deepseek-chat", **body}) for body in BODIES]
        verdicts = [one.json().get("error", {}).get("message") for one in said]
        events = {}
        for dialect, (path, body) in streams.items():
            text = (await client.post(path, json={**model, **body})).text
            events[dialect] = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return verdicts, events


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Verdicts and events, the oracle's and the gateway's."""
    # later models name the block of calls otherwise
    text = "I see.</think>Let me look." + CALL.replace("function_calls", "tool_calls")
    command = [clients_bin("suites") / "python", PROGRAMS / "recipe_oracle.py"]
    oracle = json.loads(run(command, stdin=json.dumps({"bodies": BODIES, "text": text})))
    return oracle, asyncio.run(answers(tmp_path_factory.mktemp("gateway")))


def test_the_same_bodies_are_refused(seen):
    oracle, (here, _) = seen
    for body, there, said in zip(BODIES, oracle["verdicts"], here, strict=True):
        assert (there is None) == (body in TAKEN or body in ONLY_HERE), (body, there)
        assert (said is None) == (body in TAKEN or body in ONLY_THERE), (body, said)
        assert (there == said) == (body in TAKEN or body in SAME_WORDS), (body, there, said)


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_streams_have_the_same_shape(seen, dialect):
    oracle, (_, events) = seen
    shape = chat_shape if dialect == "chat" else event_shape
    there, here = shapes(oracle["events"][dialect], shape), shapes(events[dialect], shape)
    if dialect == "messages":
        # the first sign of life comes before the first block here
        assert ["ping", None] in there and here[1] == ["ping", None]
        there, here = ([one for one in found if one[0] != "ping"] for found in (there, here))
    assert there == here
