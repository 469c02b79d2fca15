"""Every example against a real cluster of the demo model."""

import json
import re
import sys

import pytest

from tests.support.client_programs import JAVASCRIPT, REPO, node, run
from tests.support.demo_cluster import demo_cluster

pytestmark = pytest.mark.slow

EXAMPLES = REPO / "examples"
PYTHON = ("account", "chat", "fill_in_the_middle", "json_schema", "messages", "streaming", "tools")
NODE = ("ai_sdk", "chat", "json_schema", "streaming", "tools")
CURL = ("account", "chat", "fill_in_the_middle", "json_schema", "messages", "streaming", "tools")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with demo_cluster(tmp_path_factory.mktemp("demo")) as cluster_and_url:
        yield cluster_and_url


@pytest.fixture
def url(served):
    return served[1]


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
    ("python", "json_schema"): r"^{'city': 'Oslo', 'age': 42}\n$",
    ("python", "messages"): r"ended by (max_tokens|end_turn), \d+ tokens\nthe prompt has \d+ tokens\n$",
    ("python", "streaming"): r"\nended by (length|stop)\n\d+ tokens, \d+ of them thought\n$",
    ("python", "tools"): r"^thought: (.|\n)*\nanswer: ",
    ("javascript", "ai_sdk"): r"\n\d+ tokens\n$",
    ("javascript", "chat"): r"\n\d+ prompt tokens, \d+ new\n$",
    ("javascript", "json_schema"): r"^{ city: 'Oslo', age: 42 }\n$",
    ("javascript", "streaming"): r"\nended by (length|stop)\n\d+ tokens\n$",
    ("javascript", "tools"): r"^thought: (.|\n)*\nanswer: ",
}
"""What the examples write: of the model's words those that it writes each time, as it is asked."""


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


def test_grpc(served):
    cluster, _ = served
    command = [sys.executable, EXAMPLES / "generate_client.py", "Once", "--max-tokens", "8"]
    assert run([*command, "--address", cluster.routers[0].address])
