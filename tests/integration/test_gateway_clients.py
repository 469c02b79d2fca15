"""The official clients of OpenAI and Anthropic against the gateway over HTTP: chat, streams, tools, errors, limits."""

import json

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.support.http_gateway import gateway_thread
from tests.support.redis_server import wait_for
from tests.support.scripted_talk import CALL, HELLO, SCHEMA, reply, with_refusals

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with gateway_thread(with_refusals(), tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def claude(gateway):
    with anthropic.Anthropic(base_url=f"{gateway.url}/anthropic", api_key="none", max_retries=0, timeout=30) as client:
        yield client


HI = [{"role": "user", "content": "hi"}]
WEATHER = [{"role": "user", "content": "What weather?"}]
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
CLAUDE_TOOL = {"name": "get_weather", "input_schema": SCHEMA}


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
def test_chat_whole_and_streamed_are_the_same(client, model):
    whole = client.chat.completions.create(model=model, messages=HI)
    message = whole.choices[0].message
    assert message.content == "Hello, größe 🐳 STOP more."
    chunks = list(
        client.chat.completions.create(model=model, messages=HI, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought == getattr(message, "reasoning_content", "") == ("I see." if model == "deepseek-reasoner" else "")
    assert chunks[-1].usage == whole.usage and whole.usage.prompt_tokens_details.cached_tokens > 0
    reasoning = whole.usage.completion_tokens_details.reasoning_tokens
    assert (reasoning > 0) == (model == "deepseek-reasoner")


def test_a_loop_of_tools_with_thinking(client):
    messages = list(WEATHER)
    first = client.chat.completions.create(model="deepseek-reasoner", messages=messages, tools=[CHAT_TOOL])
    answer = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls" and answer.content == "Let me look."
    assert json.loads(answer.tool_calls[0].function.arguments) == {"city": "Köln"}
    messages += [answer, {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "12 degrees"}]
    last = client.chat.completions.create(model="deepseek-reasoner", messages=messages, tools=[CHAT_TOOL])
    assert last.choices[0].message.content == "Mild." and last.choices[0].finish_reason == "stop"


def test_a_named_tool_is_called_and_its_stream_can_be_put_together(client):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with client.chat.completions.stream(
        model="deepseek-chat", messages=HI, tools=[CHAT_TOOL], tool_choice=choice
    ) as stream:
        for _ in stream:
            pass
        call = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert call.name == "get_weather" and json.loads(call.arguments) == {"city": "Köln"}


def test_a_malformed_call_is_content_and_the_reason_is_stop(client):
    whole = client.chat.completions.create(
        model="deepseek-chat", messages=[{"role": "user", "content": "broken"}], tools=[CHAT_TOOL]
    )
    assert whole.choices[0].message.content == f"Oh.{CALL[:-60]}" and not whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "stop"


def test_stop_texts_lengths_and_several_answers(client):
    stopped = client.chat.completions.create(model="deepseek-chat", messages=HI, stop="STOP", n=2)
    assert [choice.message.content for choice in stopped.choices] == ["Hello, größe 🐳 "] * 2
    cut = client.chat.completions.create(
        model="deepseek-chat", messages=HI, max_tokens=3, logprobs=True, top_logprobs=1
    )
    assert cut.choices[0].finish_reason == "length" and len(cut.choices[0].logprobs.content) == 3


def test_errors_have_the_form_of_each_client(client, claude):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="deepseek-chat", messages=HI, temperature=3)
    assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"
    busy = [{"role": "user", "content": "unavailable"}]
    with pytest.raises(openai.InternalServerError) as unavailable:
        client.chat.completions.create(model="deepseek-chat", messages=busy)
    assert unavailable.value.status_code == 503
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(model="deepseek-chat", max_tokens=5, messages=[{"role": "robot", "content": "x"}])
    assert bad.value.body["type"] == "error" and bad.value.body["error"]["type"] == "invalid_request_error"
    assert bad.value.body["request_id"] == bad.value.response.headers["x-request-id"]
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(model="deepseek-chat", input="hi", previous_response_id="resp_0")
    assert stored.value.param == "previous_response_id"


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
def test_responses_whole_and_streamed_are_the_same(client, model):
    whole = client.responses.create(model=model, input="hi", instructions="Be kind.", max_output_tokens=500)
    assert whole.output_text == "Hello, größe 🐳 STOP more." and whole.status == "completed"
    kinds = [item.type for item in whole.output]
    assert kinds == (["reasoning", "message"] if model == "deepseek-reasoner" else ["message"])
    with client.responses.stream(model=model, input="hi", instructions="Be kind.", max_output_tokens=500) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == whole.output_text
    assert final.usage == whole.usage and final.id != whole.id


def test_a_loop_of_tools_with_responses(client):
    items = [{"role": "user", "content": "What weather?"}]
    first = client.responses.create(model="deepseek-reasoner", input=items, tools=[TOOL], store=False)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    call = first.output[-1]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"})
    last = client.responses.create(model="deepseek-reasoner", input=items, tools=[TOOL])
    assert last.output_text == "Mild."
    forced = client.responses.create(model="deepseek-chat", input="hi", tools=[TOOL], tool_choice="required")
    assert json.loads(forced.output[0].arguments) == {"city": "Köln"}


def test_a_response_that_is_too_long_is_incomplete(client):
    cut = client.responses.create(model="deepseek-chat", input="hi", max_output_tokens=3)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("thinks", [False, True])
def test_messages_whole_and_streamed_are_the_same(claude, thinks):
    asked = {"model": "deepseek-chat", "max_tokens": 500, "messages": HI, "system": "Be kind."}
    if thinks:
        asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    whole = claude.messages.create(**asked)
    assert [block.type for block in whole.content] == (["thinking", "text"] if thinks else ["text"])
    assert whole.content[-1].text == "Hello, größe 🐳 STOP more." and whole.stop_reason == "end_turn"
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[-1].text
        final = stream.get_final_message()
    assert [block.type for block in final.content] == [block.type for block in whole.content]
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    counted = claude.messages.count_tokens(model="deepseek-chat", messages=HI, system="Be kind.")
    if not thinks:
        assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_a_loop_of_tools_with_messages(claude):
    messages = list(WEATHER)
    asked = {"model": "deepseek-chat", "max_tokens": 500, "tools": [CLAUDE_TOOL]}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    first = claude.messages.create(**asked, messages=messages)
    assert first.stop_reason == "tool_use"
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
    assert first.content[-1].input == {"city": "Köln"}
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "12 degrees"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(**asked, messages=messages).content[-1].text == "Mild."


def test_models_are_listed_page_by_page(gateway, claude):
    names = [model.name for model in gateway.core.names.models]
    assert [model.id for model in claude.models.list()] == names
    assert [model.id for model in claude.models.list(limit=2)] == names
    back = claude.models.list(before_id=names[-1], limit=3)
    assert [model.id for model in back.data] == names[-4:-1] and back.has_more
    one = claude.models.retrieve("DEEPSEEK-chat")
    assert (one.id, one.display_name, one.type, one.lifecycle) == ("deepseek-chat", "deepseek-chat", "model", "active")
    assert one.max_input_tokens == gateway.core.max_context >= one.max_tokens > 0 and one.created_at.tzinfo is not None
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.models.retrieve("none-of-these")
    assert missing.value.body["error"]["type"] == "not_found_error"
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "none-of-these"}):
        with pytest.raises(anthropic.BadRequestError, match=next(iter(wrong))):
            claude.models.list(**wrong)


def test_the_stop_sequence_is_told(claude):
    asked = {"model": "deepseek-chat", "max_tokens": 500, "messages": HI, "stop_sequences": ["never", "OP m", "STOP m"]}
    whole = claude.messages.create(**asked)
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", "STOP m")
    assert whole.content[0].text == "Hello, größe 🐳 "
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().stop_sequence == "STOP m"


class City(BaseModel):
    city: str
    degrees: int


def test_structured_output_is_parsed_by_both(client, claude):
    messages = [{"role": "user", "content": "JSON, please"}]
    chat = client.chat.completions.parse(model="deepseek-chat", messages=messages, response_format=City)
    response = client.responses.parse(model="deepseek-chat", input="JSON, please", text_format=City)
    message = claude.messages.parse(model="deepseek-chat", max_tokens=500, messages=messages, output_format=City)
    for parsed in (chat.choices[0].message.parsed, response.output_parsed, message.parsed_output):
        assert parsed == City(city="Köln", degrees=12)


def test_both_try_again_when_they_are_told_to(client, claude):
    crowd, throng = ([{"role": "user", "content": word}] for word in ("crowd", "throng"))
    chat = client.with_options(max_retries=1).chat.completions.create(model="deepseek-chat", messages=crowd)
    assert chat.choices[0].message.content == HELLO
    message = claude.with_options(max_retries=1).messages.create(model="deepseek-chat", max_tokens=500, messages=crowd)
    assert message.content[0].text == HELLO
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="deepseek-chat", messages=throng)
    assert refused.value.code == "rate_limit_exceeded" and refused.value.response.headers["retry-after-ms"] == "10"
    with pytest.raises(anthropic.RateLimitError):
        claude.messages.create(model="deepseek-chat", max_tokens=500, messages=throng)


def test_whoever_gives_up_waiting_is_noticed(gateway, client, claude):
    silence = [{"role": "user", "content": "silence"}]
    before = len(gateway.router.cancelled)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(model="deepseek-chat", messages=silence)
    with pytest.raises(anthropic.APITimeoutError):
        claude.with_options(timeout=0.2).messages.create(model="deepseek-chat", max_tokens=500, messages=silence)
    wait_for(lambda: len(gateway.router.cancelled) == before + 2, timeout_s=30.0)


def test_an_answer_that_was_begun_is_gone_on_with(gateway, claude):
    messages = [*HI, {"role": "assistant", "content": "Once"}]
    claude.messages.create(model="deepseek-chat", max_tokens=50, messages=messages)
    assert gateway.router.prompts[-1].endswith("<｜Assistant｜></think>Once")


def test_with_the_models_own_tokenizer(tmp_path):
    with gateway_thread(reply, tmp_path, real=True) as served:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)
        asked = {"model": "deepseek-reasoner", "messages": WEATHER, "tools": [CHAT_TOOL]}
        whole = client.chat.completions.create(**asked, extra_body={"return_token_ids": True})
        assert whole.choices[0].message.content == "Let me look."
        assert json.loads(whole.choices[0].message.tool_calls[0].function.arguments) == {"city": "Köln"}
        # begin, and DSML, are one token each; the reasoning counts with its end
        assert whole.prompt_token_ids[0] == 0 and 128793 in whole.choices[0].token_ids
        assert whole.usage.completion_tokens_details.reasoning_tokens == 4  # I, see, full stop, end
        with client.chat.completions.stream(**asked) as stream:
            for _ in stream:
                pass
            call = stream.get_final_completion().choices[0].message.tool_calls[0].function
        assert json.loads(call.arguments) == {"city": "Köln"}
