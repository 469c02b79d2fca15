"""Completions taken apart: the inverse of the encoder, and strict about everything else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.text.encoding_v32 import Message, ToolCall, encode_pieces
from baleen.text.parsing_v32 import MalformedCompletion, parse_completion
from tests.unit.baleen.text.test_encoding_v32 import message

VECTORS = Path(__file__).parents[3] / "data" / "encoding_v32"
BLOCK = "\n\n<｜DSML｜function_calls>"
USER = Message(role="user", content="?")

words = st.text(alphabet="abc <>/\n\"'{}é", max_size=12)
values = st.none() | st.booleans() | st.integers() | words | st.lists(words, max_size=3)
calls = st.builds(
    lambda name, arguments: ToolCall(name, json.dumps(arguments, ensure_ascii=False)),
    st.sampled_from(["f", "get_weather"]),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3),
)


@given(st.booleans(), words, words, st.lists(calls, max_size=2))
def test_what_was_encoded_comes_back(thinking, reasoning, content, tool_calls):
    answer = Message(
        role="assistant", content=content, reasoning="r" + reasoning if thinking else "", tool_calls=tool_calls
    )
    text = encode_pieces([USER, answer], thinking=thinking)[1]
    assert parse_completion(text, thinking=thinking) == answer


def test_the_official_answers_come_back():
    raw = json.loads((VECTORS / "input.json").read_text(encoding="utf-8"))
    messages = [message(one) for one in raw["messages"]]
    pieces = encode_pieces(messages, thinking=True)
    checked = 0
    last_user = max(i for i, one in enumerate(messages) if one.role == "user")
    for index, one in enumerate(messages):
        if one.role == "assistant" and index > last_user:
            assert parse_completion(pieces[index], thinking=True) == one
            checked += 1
    assert checked == 2


def test_a_number_keeps_its_spelling():
    text = (
        f'{BLOCK}\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">1.50</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    )
    assert parse_completion(text, thinking=False).tool_calls == [ToolCall("f", '{"x": 1.50}')]


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("no end", True),
        (f"early{BLOCK}\n</think>", True),
        ("a</think>b", False),
        ("a<think>b", False),
        (BLOCK, False),
        (f"{BLOCK}\n</｜DSML｜function_calls>", False),
        (f'{BLOCK}\n<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>', False),
        (f'{BLOCK}\n<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls> more', False),
        (f'{BLOCK}\n<｜DSML｜invoke name="f">\nx\n</｜DSML｜invoke>\n</｜DSML｜function_calls>', False),
        (
            f'{BLOCK}\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true">1</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="x" string="true">2</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            False,
        ),
    ],
)
def test_anything_else_is_refused(text, thinking):
    with pytest.raises(MalformedCompletion):
        parse_completion(text, thinking=thinking)
