"""The example of each page on errors, sent to a real gateway: it gets what the page shows, and is led to the page."""

import json

import pytest

from baleen.accounts_config import KeysConfig
from baleen.errors import InvalidRequest
from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from baleen.text.tokenizer_files import tokenizer_files
from router.config import RouterProcessConfig
from router.gateway.config import GatewayProcessConfig
from router.gateway.error_pages import PAGES, PREFIX
from router.gateway.main import Gateway
from router.gateway.refusal import page_of
from router.main import Router
from tests.support.gateway_server import GatewayServer, scenario
from tests.support.router_client import run

CHAT = {"model": "baleen", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def check(gateway, page, key):
    reply = await gateway.call(page.method, page.path, dict(page.body), key=key)
    assert reply.status == page.status, reply.body
    assert reply.json() == {"error": {**page.says, "doc": PREFIX + page.name}}
    assert reply.headers["link"] == f'<{PREFIX}{page.name}>; rel="help"'
    # it can be read without a key, and shows this very answer
    shown = await gateway.call("GET", PREFIX + page.name)
    assert shown.status == 200 and shown.headers["content-type"].startswith("text/plain")
    text = shown.body.decode()
    assert text == page.text() and json.loads(text.split("```json\n")[1].split("\n```")[0]) == reply.json()
    if page.status in (429, 503):
        assert int(reply.headers["retry-after"]) >= 1


def test_every_example_gets_what_its_page_shows(tmp_path):
    async def talk(gateway):
        used_up = gateway.add_key(requests_per_minute=1)
        assert (await gateway.call("POST", "/v1/chat/completions", CHAT, key=used_up)).status == 200
        keys = {"good": gateway.add_key(), "poor": gateway.add_key(balance=1), "used up": used_up}
        keys["wrong"] = keys["good"][:-1] + "x"
        seen = [page for page in PAGES if page.name != "not-ready"]
        for page in seen:
            await check(gateway, page, keys[page.caller])
        listed = (await gateway.call("GET", PREFIX + "README")).body.decode()
        assert all(f"({page.name}.md)" in listed for page in PAGES)
        assert (await gateway.call("GET", PREFIX + "none")).status == 401
        # Anthropic's form has no place for it but the header
        reply = await gateway.call("POST", "/v1/messages", CHAT | {"model": "gpt-4o"}, key=keys["good"])
        assert reply.headers["link"] == f'<{PREFIX}model-name>; rel="help"'
        assert set(reply.json()["error"]) == {"type", "message"}
        # under /anthropic the name is nobody's, and so the usual model's
        reply = await gateway.call("POST", "/anthropic/v1/messages", CHAT | {"model": "gpt-4o"}, key=keys["good"])
        assert (reply.status, reply.json()["model"]) == (200, "deepseek-chat")
        body = {"model": "gpt-4o", "messages": CHAT["messages"]}
        reply = await gateway.call("POST", "/anthropic/v1/messages/count_tokens", body, key=keys["good"])
        assert reply.json()["input_tokens"] > 0
        reply = await gateway.call(
            "POST", "/v1/chat/completions", CHAT | {"modalities": ["text", "audio"]}, key=keys["good"]
        )
        assert (reply.status, reply.json()["error"]["param"]) == (400, "modalities")

    scenario(tmp_path, talk)


def test_a_gateway_without_ranks_leads_to_its_page(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)

    async def talk():
        router = Router(RouterProcessConfig(listen="127.0.0.1:0", ranks="127.0.0.1:1"), log=Log("off"))
        address = await router.start()
        try:
            gateway = Gateway(
                GatewayProcessConfig(
                    listen="127.0.0.1:0",
                    routers=(address,),
                    model=str(tmp_path),
                    model_name="baleen",
                    accounts=str(tmp_path / "accounts.db"),
                    settings=GatewayConfig(keys=KeysConfig(mode="open")),
                    drain_timeout_s=1.0,
                ),
                log=Log("off"),
            )
            port = int((await gateway.start()).rpartition(":")[2])
            try:
                server = GatewayServer(port, gateway.core, [], tmp_path / "accounts.db", [])
                await check(server, next(page for page in PAGES if page.name == "not-ready"), None)
            finally:
                await gateway.stop()
        finally:
            await router.stop(0.0)

    run(talk())


@pytest.mark.parametrize("dialect_field", ["messages[3].tool_call_id", "messages[0].reasoning_content"])
def test_errors_of_results_are_known_by_their_field(dialect_field):
    assert page_of(InvalidRequest("x", field=dialect_field)) == "tool-results"
