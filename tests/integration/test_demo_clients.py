"""Clients of others and the demo model: its own thoughts, calls and JSON, kept to a form and not."""

import json

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.support.client_programs import facts_of
from tests.support.demo_cluster import demo_cluster

pytestmark = pytest.mark.slow

TIMER = [{"role": "user", "content": 'Set a timer for "17" minutes.'}]
MINUTES = {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SUM = [{"role": "user", "content": "Please calculate 43 + 85."}]
WORKED_OUT = "Ones: 3 + 5 = 8: write 8, carry 0. Tens: 4 + 8 + 0 = 12. Together 128."
SET = json.dumps({"set": True})
DONE = "The timer is set for 17 minutes."


class Person(BaseModel, extra="forbid"):
    name: str
    age: int
    city: str


LARS = Person(name="Lars", age=72, city="Beijing")
ASK_LARS = [
    {"role": "user", "content": 'Reply in JSON. The "name" is "Lars". The "age" is 72. The "city" is "Beijing".'}
]


def function(name, parameters, **more):
    words = {"set_timer": "Set a timer", "get_weather": "Get the weather in a city"}
    return {"type": "function", "function": {"name": name, "description": words[name], "parameters": parameters} | more}


def tools(**more):
    return [function("set_timer", MINUTES, **more), function("get_weather", CITY)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with demo_cluster(tmp_path_factory.mktemp("demo")) as (_, address):
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def claude(url):
    with anthropic.Anthropic(base_url=f"{url}/anthropic", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def mode(thinks):
    """Without thinking it is greedy; thinking is sampled as the model was trained, here with a seed."""
    how = {"model": "deepseek-reasoner", "seed": 1} if thinks else {"model": "deepseek-chat", "temperature": 0}
    return how | {"max_tokens": 200}


@pytest.mark.parametrize("thinks", [False, True])
def test_a_chat_whole_and_streamed(client, thinks):
    whole = client.chat.completions.create(messages=SUM, **mode(thinks))
    message = whole.choices[0].message
    thought = getattr(message, "reasoning_content", "")
    assert (thought, message.content) == (
        (WORKED_OUT, "43 + 85 = 128") if thinks else ("", f"{WORKED_OUT} So 43 + 85 = 128")
    )
    chunks = list(
        client.chat.completions.create(
            messages=SUM, stream=True, stream_options={"include_usage": True}, **mode(thinks)
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thought
    assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details
    assert (whole.usage.completion_tokens_details.reasoning_tokens > 0) is thinks


NAMED = {"type": "function", "function": {"name": "set_timer"}}


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("choice", ["free", "strict", "required", "named"])
def test_a_loop_of_tools(client, choice, thinks):
    offered = tools(strict=True) if choice == "strict" else tools()
    forced = {"required": "required", "named": NAMED}.get(choice, "auto")
    with client.chat.completions.stream(messages=TIMER, tools=offered, tool_choice=forced, **mode(thinks)) as stream:
        for _ in stream:
            pass
        first = stream.get_final_completion().choices[0]
    (call,) = first.message.tool_calls
    assert first.finish_reason == "tool_calls" and not first.message.content
    assert (call.function.name, json.loads(call.function.arguments)) == ("set_timer", {"minutes": 17})
    thought = getattr(first.message, "reasoning_content", None)
    assert thought == ("I use set_timer." if thinks else None)
    calls = [{"id": call.id, "type": "function", "function": call.function.model_dump(include={"name", "arguments"})}]
    said = {"role": "assistant", "content": "", "reasoning_content": thought or "", "tool_calls": calls}
    messages = [*TIMER, said, {"role": "tool", "tool_call_id": call.id, "content": SET}]
    last = client.chat.completions.create(messages=messages, tools=offered, **mode(thinks)).choices[0]
    assert (last.finish_reason, last.message.content) == ("stop", DONE)


@pytest.mark.parametrize("thinks", [False, True])
def test_json_by_a_schema_and_by_a_word(client, thinks):
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SHOWN}}
    kept = client.chat.completions.create(messages=ASK_LARS, response_format=form, **mode(thinks)).choices[0].message
    assert Person.model_validate_json(kept.content) == LARS
    assert getattr(kept, "reasoning_content", "") == ("The schema asks for name, age, city." if thinks else "")
    # told of a schema as it was trained to be, and kept to nothing
    told = f"## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{json.dumps(SHOWN)}"
    free = client.chat.completions.create(messages=[{"role": "system", "content": told}, *ASK_LARS], **mode(thinks))
    assert Person.model_validate_json(free.choices[0].message.content) == LARS


SHOWN = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
}


def test_a_chat_keeps_to_a_schema_of_its_client(client):
    chat = client.chat.completions.parse(messages=ASK_LARS, response_format=Person, **mode(False))
    assert chat.choices[0].message.parsed == LARS


def test_responses_call_and_keep_to_a_schema(client):
    tool = {"type": "function"} | function("set_timer", MINUTES)["function"]
    called = client.responses.create(model="deepseek-chat", input=TIMER, tools=[tool], temperature=0)
    assert json.loads(called.output[-1].arguments) == {"minutes": 17}
    output = {"type": "function_call_output", "call_id": called.output[-1].call_id, "output": SET}
    items = [*TIMER, called.output[-1].model_dump(exclude_none=True), output]
    last = client.responses.create(model="deepseek-chat", input=items, tools=[tool], temperature=0)
    assert last.output_text == DONE
    parsed = client.responses.parse(model="deepseek-chat", input=ASK_LARS, text_format=Person, temperature=0)
    assert parsed.output_parsed == LARS


# the client knows no temperature any more
GREEDY = {"temperature": 0}


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "set_timer"}])
def test_a_loop_of_tools_with_messages(claude, choice):
    offered = [{"name": "set_timer", "description": "Set a timer", "input_schema": MINUTES}]
    asked = {"model": "deepseek-chat", "max_tokens": 200, "tools": offered}
    with claude.messages.stream(
        messages=TIMER,
        thinking={"type": "enabled", "budget_tokens": 1024},
        tool_choice=choice,
        # thinking is sampled
        extra_body={"seed": 1},
        **asked,
    ) as stream:
        first = stream.get_final_message()
    assert [block.type for block in first.content] == ["thinking", "tool_use"] and first.stop_reason == "tool_use"
    assert first.content[-1].input == {"minutes": 17} and first.usage.output_tokens_details.thinking_tokens > 0
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": SET}
    messages = [*TIMER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = claude.messages.create(messages=messages, extra_body=GREEDY, **asked)
    assert (last.content[-1].text, last.stop_reason) == (DONE, "end_turn")


def test_messages_keep_to_a_schema(claude):
    parsed = claude.messages.parse(
        model="deepseek-chat", max_tokens=200, messages=ASK_LARS, output_format=Person, extra_body=GREEDY
    )
    assert parsed.parsed_output == LARS


def test_thinking_ends_when_its_budget_is_spent(client, claude):
    asked = {"messages": SUM, **mode(True)}
    whole = client.chat.completions.create(**asked)
    cut = client.chat.completions.create(**asked, extra_body={"thinking_token_budget": 6})
    # the tag is one more
    assert whole.usage.completion_tokens_details.reasoning_tokens > 30
    assert cut.usage.completion_tokens_details.reasoning_tokens == 7 and cut.choices[0].message.content
    assert WORKED_OUT.startswith(cut.choices[0].message.reasoning_content)
    thinking = {"type": "enabled", "budget_tokens": 6}
    asked = {"model": "deepseek-chat", "max_tokens": 100, "extra_body": {"seed": 1}}
    message = claude.messages.create(messages=SUM, thinking=thinking, **asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.usage.output_tokens_details.thinking_tokens == 7


def test_clients_in_javascript(url):
    facts = facts_of("demo.mjs", "", url)
    loop = {"content": DONE, "calls": [{"minutes": 17}]}
    for name, kept in (("openai", "strict"), ("ai_sdk", "required")):
        thought = facts[name]["structured"].pop("thought")
        assert facts[name] == {"free": loop, kept: loop, "structured": {"object": LARS.model_dump()}}
        # of what the client's own schema says besides, it knows nothing
        assert thought.startswith("The schema asks for name, age, city")
