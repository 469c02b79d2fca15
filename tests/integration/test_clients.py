"""Clients of others against the gateway: chat, streams, loops of tools, structured output, errors, retries, timeouts.

Each is a program of tests/clients in an environment of its own, and tells what it made of the same answers.
"""

from dataclasses import dataclass

import pytest

from tests.support.client_programs import facts_of
from tests.support.http_gateway import gateway_thread
from tests.support.redis_server import wait_for
from tests.support.scripted_talk import HELLO, MILD, with_refusals

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Told:
    """What a client makes of failures, by its own names. replays: it sends back what was thought before a call."""

    wrong: str
    unavailable: str
    refused: str
    timeout: str
    timeout_status: int | None = None
    replays: bool = True
    shows_thoughts: bool = True


AI_SDK = Told("AI_APICallError", "AI_APICallError", "AI_APICallError", "TimeoutError")
LANGCHAIN = ("OpenAIInvalidRequestError", "OpenAIAPIError", "OpenAIRateLimitError", "OpenAITimeoutError")
LITELLM = Told("BadRequestError", "ServiceUnavailableError", "RateLimitError", "Timeout", timeout_status=408)
CLIENTS = {
    "openai_npm.mjs": {
        # its runner of tools, streamed, puts no field together that OpenAI does not know
        "": Told(
            "BadRequestError", "InternalServerError", "RateLimitError", "APIConnectionTimeoutError", replays=False
        ),
    },
    "ai_sdk.mjs": {"compatible": AI_SDK, "deepseek": AI_SDK},
    "litellm_client.py litellm": {"deepseek": LITELLM, "hosted_vllm": LITELLM},
    "langchain_client.py langchain": {
        "openai": Told(*LANGCHAIN, replays=False, shows_thoughts=False),
        "deepseek": Told(*LANGCHAIN, replays=False),
    },
    "pydantic_ai_client.py langchain": {
        "": Told("ModelRequestRejectedError", "ModelUnavailableError", "ModelRateLimitError", "ModelTimeoutError"),
    },
    "instructor_client.py instructor": {
        "": Told("BadRequestError", "InternalServerError", "RateLimitError", "APITimeoutError"),
    },
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with gateway_thread(with_refusals(), tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client(gateway, client):
    gateway.router.prompts.clear()
    cancelled = len(gateway.router.cancelled)
    program, _, environment = client.partition(" ")
    facts = facts_of(program, environment, gateway.url)
    for name, told in CLIENTS[client].items():
        check(facts[name] if name else facts, told)
    # the prompts of a loop's second calls, one for each
    second = [prompt for prompt in gateway.router.prompts if "12 degrees" in prompt]
    assert len(second) == sum("tools" in (facts[name] if name else facts) for name in CLIENTS[client])
    for prompt, told in zip(second, CLIENTS[client].values(), strict=False):
        assert ("<think>I see.</think>" in prompt) == told.replays
    # whoever gave up waiting was noticed
    wait_for(lambda: len(gateway.router.cancelled) - cancelled >= len(CLIENTS[client]), timeout_s=30.0)


def check(facts, told):
    chat = facts["chat"]
    assert (chat["content"], chat["reasoning"]) == (HELLO, "I see." if told.shows_thoughts else None)
    prompt, completion, cached, reasoning = chat["usage"]
    assert completion > reasoning > 0 and prompt > cached > 0
    if "tools" in facts:
        assert facts["stream"] == chat
        assert facts["tools"] == {"content": MILD, "calls": [{"city": "Köln"}]}
    else:
        assert facts["stream"] == {"city": "Köln", "degrees": 12}
    assert all(found == {"city": "Köln", "degrees": 12} for found in facts["structured"]) and facts["structured"]
    errors = facts["errors"]
    assert errors["wrong"] == errors["model"] == [told.wrong, 400]
    assert errors["unavailable"] == [told.unavailable, 503]
    assert errors["refused"] == [told.refused, 429]
    assert errors["timeout"] == [told.timeout, told.timeout_status]
    assert errors.get("abort", ["APIUserAbortError", None]) == ["APIUserAbortError", None]
    assert facts["retried"] == HELLO
