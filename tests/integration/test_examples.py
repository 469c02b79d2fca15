"""Every example against a real cluster, whose model writes noise; those that want certain words, a scripted one too."""

import json
import re
import sys
from dataclasses import replace

import pytest

from tests.support.client_programs import JAVASCRIPT, REPO, node, run
from tests.support.http_gateway import gateway_thread
from tests.support.models import golden_recipe
from tests.support.scripted_talk import HELLO, MILD, reply
from tests.support.small_cluster import small_cluster
from workers.model.make_checkpoint import make_checkpoint

pytestmark = pytest.mark.slow

EXAMPLES = REPO / "examples"
PYTHON = ("account", "chat", "fill_in_the_middle", "json_schema", "messages", "streaming", "tools")
NODE = ("ai_sdk", "chat", "json_schema", "streaming", "tools")
CURL = ("account", "chat", "fill_in_the_middle", "json_schema", "messages", "streaming", "tools")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    recipe = replace(golden_recipe("dev_bf16.golden"), tokenizer="bytes")
    make_checkpoint(directory / "model", recipe, progress=False)
    with small_cluster(directory / "model", directory, roles=["mixed"], cache={"num_blocks": 128}) as running:
        yield running


@pytest.fixture(scope="module")
def url(cluster):
    with cluster.gateway() as address:
        yield address


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    with gateway_thread(reply, tmp_path_factory.mktemp("gateway"), real=True) as served:
        yield served


def python(name, url):
    return run([sys.executable, EXAMPLES / "python" / f"{name}.py"], BALEEN_URL=url)


def javascript(name, url):
    return run([node(), f"{name}.mjs"], folder=JAVASCRIPT, BALEEN_URL=url)


def curl(name, url):
    return run(["sh", EXAMPLES / "curl" / f"{name}.sh"], BALEEN_URL=url)


def test_all_of_them_are_run_and_told_of():
    told = (EXAMPLES / "README.md").read_text()
    for folder, names, ending in (("python", PYTHON, "py"), ("javascript", NODE, "mjs"), ("curl", CURL, "sh")):
        assert {path.name for path in (EXAMPLES / folder).glob(f"*.{ending}")} == {f"{name}.{ending}" for name in names}
        assert folder == "curl" or {name for place, name in ENDS if place == folder} == set(names)
        assert all(f"`{folder}/{name}.{ending}`" in told for name in names)


ENDS = {
    ("python", "account"): r"\bdeepseek-v3\.2: \d+ tokens of context(.|\n)*can pay: True\n$",
    ("python", "chat"): r"\n\d+ prompt tokens, \d+ cached, \d+ new\n$",
    ("python", "fill_in_the_middle"): r"^def total\(values\):\n(.|\n)*return result\n",
    ("python", "json_schema"): r".",
    ("python", "messages"): r"ended by (max_tokens|end_turn), \d+ tokens\nthe prompt has \d+ tokens\n$",
    ("python", "streaming"): r"\nended by (length|stop)\n\d+ tokens, \d+ of them thought\n$",
    ("python", "tools"): r"^thought: (.|\n)*\nanswer: ",
    ("javascript", "ai_sdk"): r"\n\d+ tokens\n$",
    ("javascript", "chat"): r"\n\d+ prompt tokens, \d+ new\n$",
    ("javascript", "json_schema"): r".",
    ("javascript", "streaming"): r"\nended by (length|stop)\n\d+ tokens\n$",
    ("javascript", "tools"): r"^thought: (.|\n)*\nanswer: ",
}
"""What the examples write besides the model's words, which are noise here."""


@pytest.mark.parametrize(("language", "name"), ENDS)
def test_python_and_javascript(url, language, name):
    written = {"python": python, "javascript": javascript}[language](name, url)
    assert re.search(ENDS[language, name], written), written


@pytest.mark.parametrize("name", CURL)
def test_curl(url, name):
    written = curl(name, url)
    if name == "streaming":
        assert written.endswith("data: [DONE]\n\n") and '"usage":{"prompt_tokens":' in written
        return
    # empty lines are signs of life
    first, *rest = (json.loads(line) for line in written.splitlines() if line)
    if name == "account":
        assert first["data"][0]["id"] == "baleen" and rest[0]["is_available"] is True
        return
    tokens = first["usage"]["output_tokens" if name == "messages" else "completion_tokens"]
    assert 0 < tokens <= 200 and first["model"] == "deepseek-v3.2"


def test_grpc(cluster):
    command = [sys.executable, EXAMPLES / "generate_client.py", "Once", "--max-tokens", "8"]
    assert run([*command, "--address", cluster.routers[0].address])


@pytest.mark.parametrize("program", [python, javascript])
def test_what_a_model_that_knows_what_to_say_makes_of_them(scripted, program):
    lines = program("tools", scripted.url).splitlines()
    assert lines[:2] == ["thought: I see.", 'calls get_weather with {"city": "Köln"}']
    assert lines[-1] == f"answer: {MILD}"
    # what was thought before the call went back
    assert "I see.</think>" in scripted.router.prompts[-1]
    assert "Köln" in program("json_schema", scripted.url)
    assert HELLO in program("chat", scripted.url)
    assert f"I see.{HELLO}\nended by stop" in program("streaming", scripted.url)
