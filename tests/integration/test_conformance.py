"""The suites of others against the gateway; `make conformance` has schemathesis make up many more calls."""

import pytest

from tests.support.conformance import CLAUDE, comply, generated
from tests.support.http_gateway import gateway_thread
from tests.support.scripted_talk import reply

pytestmark = pytest.mark.slow

IMAGE = "the model reads text only"
REASONING = "the suite knows OpenAI's event response.reasoning_text.delta by another name"
SKIPPED = "the suite tries reasoning under other models' names only"
LACKING = {
    ("openai-chat", "deepseek-v3.2"): {"chat-image-input": IMAGE, "chat-reasoning-summary": SKIPPED},
    ("openai-chat", "deepseek-reasoner"): {"chat-image-input": IMAGE},
    ("open-responses", "deepseek-v3.2"): {"image-input": IMAGE, "reasoning-summary": SKIPPED},
    ("open-responses", "deepseek-reasoner"): {
        "image-input": IMAGE,
        "streaming-response": REASONING,
        "streaming-usage": REASONING,
    },
    ("anthropic", "deepseek-v3.2"): {"anth-image-input": IMAGE, "anth-thinking-display": SKIPPED},
    ("anthropic", CLAUDE): {"anth-image-input": IMAGE},
}
"""What does not pass, and why: docs/conformance.md."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with gateway_thread(reply, tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.mark.parametrize(("form", "model"), LACKING)
def test_llm_comply(gateway, form, model):
    states = comply(gateway.url, form, model)
    assert len(states) == {"openai-chat": 9, "open-responses": 13, "anthropic": 9}[form]
    assert {test for test, state in states.items() if state != "passed"} == LACKING[form, model].keys()


@pytest.mark.parametrize("name", ["openai_chat", "anthropic"])
def test_answers_to_generated_calls_are_as_specified(gateway, tmp_path, name):
    one = generated(gateway, name, "served", 5, tmp_path, seed=1)
    assert one.passed, one.output
    assert one.cases >= 10 and any(endpoint.endswith("2xx") for endpoint in one.answers)
