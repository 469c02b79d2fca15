"""The chat encoder against the official vectors and the worked strings of the format's description."""

import json
from pathlib import Path
from typing import Any

import pytest

from baleen.errors import InvalidRequest
from baleen.text.encoding_v32 import Message, ToolCall, encode_messages, encode_pieces

VECTORS = Path(__file__).parents[3] / "data" / "encoding_v32"


def message(raw: dict[str, Any]) -> Message:
    calls = [ToolCall(call["function"]["name"], call["function"]["arguments"]) for call in raw.get("tool_calls") or ()]
    return Message(
        role=raw["role"],
        content=raw.get("content") or "",
        reasoning=raw.get("reasoning_content") or "",
        tool_calls=calls,
        tools=tuple(tool["function"] for tool in raw.get("tools") or ()),
    )


@pytest.mark.parametrize("name", ["", "_search_w_date", "_search_wo_date"])
def test_the_official_vectors(name):
    raw = json.loads((VECTORS / f"input{name}.json").read_text(encoding="utf-8"))
    if "tools" in raw:
        raw["messages"][0]["tools"] = raw["tools"]
    expected = (VECTORS / f"output{name}.txt").read_text(encoding="utf-8")
    found = encode_messages([message(one) for one in raw["messages"]], thinking=True)
    assert found == (expected.removesuffix("\n") if not name else expected)


def test_the_model_cards_string_and_both_modes():
    messages = [
        Message(role="user", content="hello"),
        Message(role="assistant", content="Hello! I am DeepSeek.", reasoning="old"),
        Message(role="user", content="1+1=?"),
    ]
    start = (
        "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜></think>Hello! I am DeepSeek.<｜end▁of▁sentence｜>"
        "<｜User｜>1+1=?<｜Assistant｜>"
    )
    assert encode_messages(messages, thinking=True) == start + "<think>"
    assert encode_messages(messages, thinking=False) == start + "</think>"
    assert encode_messages(messages, thinking=False, begin=False).startswith("<｜User｜>hello")


def test_calls_without_arguments_and_with_objects_and_two_results():
    messages = [
        Message(role="user", content="w?"),
        Message(
            role="assistant",
            content="pre",
            reasoning="why",
            tool_calls=[ToolCall("f", "{}"), ToolCall("g", '{"x": {"y": 1}}')],
        ),
        Message(role="tool", content="R1"),
        Message(role="tool", content="R2"),
    ]
    assert encode_messages(messages, thinking=True) == (
        "<｜begin▁of▁sentence｜><｜User｜>w?<｜Assistant｜><think>why</think>pre\n\n<｜DSML｜function_calls>\n"
        '<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>\n<｜DSML｜invoke name="g">\n'
        '<｜DSML｜parameter name="x" string="false">{"y": 1}</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n<function_results>\n<result>R1</result>\n"
        "<result>R2</result>\n</function_results>\n\n<think>"
    )


def test_response_format_and_developer():
    schema = {"type": "object", "ü": [1, True, None]}
    system = Message(role="system", content="S", response_format=schema)
    assert encode_pieces([system], thinking=False) == [
        "S\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
        '{"type": "object", "ü": [1, true, null]}'
    ]
    developer = Message(role="developer", content="do", response_format=schema)
    assert encode_pieces([developer], thinking=True)[0].endswith(
        "}\n\n# The user's message is: do<｜Assistant｜><think>"
    )


ASK = Message(role="user", content="?")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([ASK, Message(role="assistant", content="x")], "messages[1].reasoning_content: in thinking mode"),
        ([ASK, Message(role="assistant", tool_calls=[ToolCall("f", "{")])], "messages[1].tool_calls: arguments of f"),
        ([ASK, Message(role="assistant", tool_calls=[ToolCall("f", "[]")])], "are list, must be an object"),
        ([ASK, Message(role="tool", content="r")], "messages[1].role: this is result 1 of 0"),
        ([Message(role="developer")], "messages[0].content: a developer message needs content"),
    ],
)
def test_what_the_format_cannot_say_is_refused(messages, problem):
    with pytest.raises(InvalidRequest) as caught:
        encode_messages(messages, thinking=True)
    assert problem in str(caught.value)
