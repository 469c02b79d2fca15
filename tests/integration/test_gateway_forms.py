"""Answers in a form over HTTP, in every dialect, from a real router and a rank of random weights at temperature 1."""

import asyncio
import json
import re

import jsonschema
import pytest

from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from router.gateway.config import GatewayProcessConfig
from router.gateway.main import Gateway
from tests.support.gateway_server import GatewayServer
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "k": {"enum": ["a", "b"]}},
    "required": ["n", "k"],
    "additionalProperties": False,
}
USER = {"role": "user", "content": "json"}
CHAT = {"model": "deepseek-chat", "messages": [USER], "max_tokens": 600}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}
OWN_TOOL = {"name": "f", "input_schema": SCHEMA}


def kept(arguments):
    jsonschema.validate(json.loads(arguments) if isinstance(arguments, str) else arguments, SCHEMA)
    return True


async def chats(server):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    whole = (await server.call("POST", "/v1/chat/completions", CHAT | {"response_format": form, "n": 2})).json()
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "stop"]
    assert all(kept(choice["message"]["content"]) for choice in whole["choices"])
    required = CHAT | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    streamed = await server.call("POST", "/v1/chat/completions", required | {"stream": True})
    deltas = [event["choices"][0] for event in streamed.events if event["choices"]]
    calls = [call for delta in deltas for call in delta["delta"].get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "f" and {call["index"] for call in calls} == {0}
    assert kept("".join(call["function"]["arguments"] for call in calls))
    assert deltas[-1]["finish_reason"] == "tool_calls" and not any(delta["delta"].get("content") for delta in deltas)
    either = CHAT | {"tools": [TOOL], "response_format": form, "parallel_tool_calls": False}
    message = (await server.call("POST", "/v1/chat/completions", either)).json()["choices"][0]["message"]
    assert all(kept(call["function"]["arguments"]) for call in message.get("tool_calls", ()))
    assert message.get("tool_calls") or kept(message["content"])


async def others(server):
    body = {"model": "deepseek-chat", "prompt": "p", "regex": "[a-c]{4}=[0-9]", "max_tokens": 20}
    text = (await server.call("POST", "/v1/completions", body)).json()["choices"][0]["text"]
    assert re.fullmatch("[a-c]{4}=[0-9]", text)
    grammar = body | {"regex": None, "ebnf": 'root ::= "x" [0-9] "y"'}
    text = (await server.call("POST", "/v1/completions", grammar)).json()["choices"][0]["text"]
    assert re.fullmatch("x[0-9]y", text)
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    body = {"model": "deepseek-chat", "input": "json", "text": {"format": form}, "max_output_tokens": 600}
    response = (await server.call("POST", "/v1/responses", body)).json()
    assert response.get("status") == "completed", response
    assert kept(response["output"][0]["content"][0]["text"])
    body = {"model": "deepseek-chat", "messages": [USER], "max_tokens": 600}
    formed = body | {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    message = (await server.call("POST", "/v1/messages", formed)).json()
    assert message["stop_reason"] == "end_turn" and kept(message["content"][0]["text"])
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "f"}):
        message = (
            await server.call("POST", "/v1/messages", body | {"tools": [OWN_TOOL], "tool_choice": choice})
        ).json()
        (block,) = message["content"]
        assert message["stop_reason"] == "tool_use" and block["name"] == "f" and kept(block["input"])


async def ends(server):
    numbers = CHAT | {"guided_regex": "[0-9]{50}"}
    cut = (await server.call("POST", "/v1/chat/completions", numbers | {"max_tokens": 7})).json()["choices"][0]
    assert cut["finish_reason"] == "length" and re.fullmatch("[0-9]{7}", cut["message"]["content"])
    stopped = (await server.call("POST", "/v1/chat/completions", numbers | {"stop": list("0123456789")})).json()
    assert stopped["choices"][0]["finish_reason"] == "stop" and stopped["choices"][0]["message"]["content"] == ""
    bad = await server.call("POST", "/v1/chat/completions", CHAT | {"guided_json": {"type": "strin"}})
    assert bad.status == 400 and bad.json()["error"]["param"] == "guided_json"


@pytest.mark.slow
def test_answers_over_http_keep_to_their_forms(tmp_path):
    async def scenario(cluster):
        config = GatewayProcessConfig(
            listen="127.0.0.1:0",
            routers=(cluster.routers[0].address,),
            model=str(cluster.checkpoint),
            model_name="baleen",
            accounts=str(tmp_path / "accounts" / "accounts.sqlite"),
            settings=GatewayConfig(),
            drain_timeout_s=5.0,
        )
        gateway = Gateway(config, log=Log("off"))
        address = await gateway.start()
        try:
            server = GatewayServer(int(address.rpartition(":")[2]), gateway.core, (), tmp_path, [])
            await chats(server)
            await others(server)
            await ends(server)
        finally:
            await gateway.stop()

    with small_cluster(make_tiny(tmp_path / "tiny"), tmp_path, roles=("mixed",)) as cluster:
        asyncio.run(scenario(cluster))
