"""Chat bodies become asks: prompts, sampling, modes; and what is wrong is refused with DeepSeek's words."""

import asyncio
from types import SimpleNamespace

import pytest

from baleen.budget import Budget
from baleen.errors import InvalidRequest
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import Tokenizer
from router.gateway.chat.request import ChatLimits, read_ask
from router.gateway.forms import Forms
from router.gateway.models import ModelNames
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
CALLS = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(2)]
CALLING = {"role": "assistant", "content": None, "tool_calls": CALLS}


async def encode(text):
    return TOKENIZER.encode(text)


ENGINE = SimpleNamespace(format=FORMATS["deepseek-v3.2"], encode=encode, tokenizer=TOKENIZER, forms=Forms())


def ask(*, limits=ChatLimits(), max_context=4000, **fields):  # noqa: B008  (it is frozen)
    body = {"model": "deepseek-chat", "messages": [USER]} | fields
    return asyncio.run(read_ask(body, ENGINE, ModelNames("baleen"), limits, max_context=max_context))


def prompt(**fields):
    return TOKENIZER.decode(ask(**fields).prompt)


def test_names_and_switches_decide_about_thinking():
    assert prompt().endswith("<｜User｜>hi<｜Assistant｜></think>")
    for model, thinks in (("DeepSeek-Reasoner", True), ("DEEPSEEK-V3.2-EXP-NOTHINKING", False), ("baleen", False)):
        assert ask(model=model).thinking is thinks
    assert ask(thinking={"type": "enabled"}).thinking
    assert not ask(model="deepseek-reasoner", thinking={"type": "disabled"}).thinking
    assert ask(chat_template_kwargs={"enable_thinking": True}, reasoning_effort="none").thinking
    assert ask(reasoning_effort="low").thinking and not ask(model="deepseek-reasoner", reasoning_effort="none").thinking


def test_sampling_is_as_asked_and_ignored_while_thinking():
    fields = {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7, "max_tokens": 9, "max_completion_tokens": 8}
    sampling = ask(**fields, stop="END", logit_bias={"5": -1}, logprobs=True, top_logprobs=2, n=2).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0, 0.5, 3, 7)
    assert (sampling.max_tokens, sampling.stop, sampling.logprobs, sampling.n) == (8, ("END",), 2, 2)
    assert sampling.logit_bias == {5: -1.0}
    thinking = ask(model="deepseek-reasoner", **fields).sampling
    assert (thinking.temperature, thinking.top_p, thinking.top_k, thinking.seed) == (1.0, 1.0, 0, 7)
    assert ask(max_context=100).sampling.max_tokens == 100 - len(ask().prompt)
    assert ask(max_context=99_999).sampling.max_tokens == 4096


def test_results_of_tools_stand_in_the_order_of_the_calls():
    results = [
        {"role": "tool", "tool_call_id": f"c{i}", "content": [{"type": "text", "text": f"R{i}"}]} for i in (1, 0)
    ]
    text = prompt(messages=[USER, CALLING, *results])
    assert text.index("<result>R0") < text.index("<result>R1")
    assert text.endswith("</function_results>\n\n</think>")


def test_a_tool_that_must_be_called_opens_the_answer():
    opened = ask(tools=[TOOL], tool_choice="required")
    assert TOKENIZER.decode(opened.prompt).endswith(opened.opening)
    assert opened.opening == '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n' and not opened.one_call
    other = {"type": "function", "function": {"name": "g"}}
    either = ask(tools=[TOOL, other], tool_choice="required")
    assert either.opening.endswith('<｜DSML｜invoke name="') and not either.one_call
    named = ask(tools=[TOOL, other], tool_choice={"type": "function", "function": {"name": "g"}})
    assert named.opening.endswith('invoke name="g">\n')
    assert not ask(tools=[TOOL], tool_choice="none").tools
    assert "strict" not in prompt(tools=[TOOL])


def test_a_tool_that_must_be_called_is_opened_by_the_grammar_once_it_has_thought():
    thinks = {"model": "deepseek-reasoner", "tools": [TOOL]}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        asked = ask(**thinks, tool_choice=choice)
        assert TOKENIZER.decode(asked.prompt).endswith("<think>") and (asked.thinking, asked.opening) == (True, "")
        assert asked.one_call is (choice != "required")
        assert "invoke name" in asked.sampling.constraint.text and "THOUGHT" in asked.sampling.constraint.text


def test_a_budget_ends_the_thinking_where_there_is_any():
    spent = Budget(tokens=7, end="</think>")
    assert ask(model="deepseek-reasoner", thinking_token_budget=7).sampling.budget == spent
    called = ask(model="deepseek-reasoner", thinking_token_budget=7, tools=[TOOL]).sampling.budget
    assert called == Budget(tokens=7, end="</think>", unless="<｜DSML｜function_calls>")
    assert ask(thinking_token_budget=7).sampling.budget is None
    ended = {"role": "assistant", "content": "So", "reasoning_content": "why", "prefix": True}
    assert ask(model="deepseek-reasoner", messages=[USER, ended], thinking_token_budget=7).sampling.budget is None


def test_a_prefix_is_gone_on_with():
    last = {"role": "assistant", "content": "So", "prefix": True}
    assert prompt(messages=[USER, last]).endswith("</think>So")
    assert ask(messages=[USER, {**last, "content": "", "reasoning_content": "why"}], model="deepseek-reasoner").thinking


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"model": "gpt"}, "model", "but you passed gpt"),
        ({"messages": []}, "messages", "Empty input messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "must be a string or an array"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "text only",
        ),
        ({"messages": [USER, CALLING]}, "messages[1].tool_calls", "insufficient tool messages"),
        ({"messages": [USER, CALLING, USER]}, "messages[1].tool_calls", "insufficient tool messages"),
        (
            {"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "R"}]},
            "messages[1].tool_call_id",
            "must be a response to a preceding message",
        ),
        ({"messages": [{**USER, "prefix": True}]}, "messages[0].prefix", "prefix set true"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 70_000}, "max_tokens", "the valid range of max_tokens is [1, 65536]"),
        ({"max_tokens": 4000}, "messages", "the model's context is 4000"),
        ({"temperature": 2.5}, "temperature", "2.5"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": ["x"] * 17}, "stop", "17"),
        ({"n": 9}, "n", "8"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs must be set to true"),
        ({"logprobs": True, "model": "deepseek-reasoner"}, "logprobs", "thinks"),
        ({"response_format": {"type": "json_object"}}, "response_format", "must contain the word 'json'"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"tools": [TOOL, TOOL]}, "tools", "Tool names must be unique."),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "does not match"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "no function named 'g' was specified in the 'tools' parameter.",
        ),
        ({"thinking_token_budget": -1}, "thinking_token_budget", "at least 0"),
        ({"thinking": {"type": "on"}}, "thinking.type", "enabled or disabled"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token id"),
    ],
)
def test_what_is_wrong_is_refused(fields, field, words):
    with pytest.raises(InvalidRequest) as caught:
        ask(**fields)
    assert caught.value.field == field and words in str(caught.value)


def test_lost_reasoning_is_refused_or_filled_as_configured():
    results = [{"role": "tool", "tool_call_id": f"c{i}", "content": "R"} for i in range(2)]
    messages = [USER, CALLING, *results]
    with pytest.raises(InvalidRequest, match="Missing `reasoning_content` field in the assistant message at message"):
        ask(messages=messages, model="deepseek-reasoner", limits=ChatLimits(missing_reasoning="reject"))
    assert ask(messages=messages, model="deepseek-reasoner").thinking
    kept = [USER, CALLING | {"reasoning_content": ""}, *results]
    assert ask(messages=kept, model="deepseek-reasoner", limits=ChatLimits(missing_reasoning="reject")).thinking
