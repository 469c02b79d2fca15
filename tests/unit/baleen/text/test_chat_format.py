"""Both chat formats: prompts against official texts, continued answers, refusals that name the field, and parsers."""

import json
from pathlib import Path
from random import Random

import pytest

from baleen.errors import InvalidRequest
from baleen.text.chat_format import FORMATS, Prompt, format_of
from baleen.text.encoding_v32 import Message, ToolCall, encode_messages
from baleen.text.output_events import ToolCallArguments, ToolCallEnd, ToolCallStart, message_of
from baleen.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.unit.baleen.text.test_encoding_v32 import message

DATA = Path(__file__).parents[3] / "data"
CASES = json.loads((DATA / "encoding_v32_exp" / "cases.json").read_text(encoding="utf-8"))
V32, EXP = FORMATS["deepseek-v3.2"], FORMATS["deepseek-v3.2-exp"]
ASK = Message(role="user", content="?")
CALL = Message(role="assistant", reasoning="r", tool_calls=[ToolCall("f", "{}"), ToolCall("g", "{}")])
RESULT = Message(role="tool", content="R")
BOS = "<｜begin▁of▁sentence｜>"


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_templates_text_for_exp(case):
    tools = [tool["function"] for tool in case["tools"] or ()]
    messages = [message(one) for one in case["messages"]]
    prompt = EXP.encode(messages, thinking=case["thinking"], tools=tools)
    assert prompt == Prompt(case["text"], thinking=case["text"].endswith("<think>"))


@pytest.mark.parametrize("name", ["", "_search_w_date", "_search_wo_date"])
def test_the_official_vectors_for_v32(name):
    raw = json.loads((DATA / "encoding_v32" / f"input{name}.json").read_text(encoding="utf-8"))
    expected = (DATA / "encoding_v32" / f"output{name}.txt").read_text(encoding="utf-8")
    messages = [message(one) for one in raw["messages"]]
    complete = messages[:-1] if messages[-1].role == "assistant" else messages
    tools = [tool["function"] for tool in raw.get("tools", ())]
    prompt = V32.encode(complete, thinking=True, tools=tools)
    assert expected.startswith(prompt.text) and prompt.text.endswith("<think>") and prompt.thinking


def test_tools_and_response_format_follow_the_first_system_message_or_stand_alone():
    tools, form = [{"name": "f", "parameters": {}}], {"type": "object"}
    system = Message(role="system", content="S")
    offering = Message(role="system", content="S", tools=tools, response_format=form)
    encoded = V32.encode([system, ASK], thinking=False, tools=tools, response_format=form)
    assert encoded.text == encode_messages([offering, ASK], thinking=False)
    alone = V32.encode([ASK], thinking=False, tools=tools, response_format=form)
    assert alone.text == encoded.text.replace(BOS + "S", BOS)
    assert "### f\nDescription: \n\nParameters: {}\n" in EXP.encode([ASK], thinking=False, tools=tools).text


@pytest.mark.parametrize("chat", [V32, EXP])
def test_an_answer_can_be_opened_by_hand_and_continued(chat):
    start = f"{BOS}<｜User｜>?<｜Assistant｜>"

    def rest(thinking, **fields):
        last = Message(role="assistant", **fields)
        return chat.encode([ASK, last], thinking=thinking, continue_last=True)

    assert rest(False, content="so") == Prompt(f"{start}</think>so", thinking=False)
    assert rest(True, content="so") == Prompt(f"{start}<think></think>so", thinking=False)
    assert rest(True, reasoning="why", content="so") == Prompt(f"{start}<think>why</think>so", thinking=False)
    assert rest(True, reasoning="why") == Prompt(f"{start}<think>why", thinking=True)
    only_system = chat.encode([Message(role="system", content="S")], thinking=True)
    assert only_system == Prompt(f"{BOS}S<｜Assistant｜><think>", thinking=True)


@pytest.mark.parametrize("chat", [V32, EXP])
@pytest.mark.parametrize(
    ("messages", "continue_last", "field"),
    [
        ([], False, "messages[0].role"),
        ([ASK, CALL], False, "messages[1].tool_calls"),
        ([ASK, CALL, RESULT], False, "messages[1].tool_calls"),
        ([ASK, CALL, RESULT, ASK, RESULT], False, "messages[1].tool_calls"),
        ([ASK], True, "messages[0].role"),
        ([ASK, CALL], True, "messages[1].role"),
    ],
)
def test_a_conversation_that_is_not_complete_is_refused(chat, messages, continue_last, field):
    with pytest.raises(InvalidRequest) as caught:
        chat.encode(messages, thinking=True, continue_last=continue_last)
    assert caught.value.field == field and str(caught.value).startswith(field)


def test_exps_calls_are_taken_apart_for_every_cut():
    text = (
        '</think>so<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": "}{", "b": {"c": 1.50}}'
        "<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    calls = [ToolCall("f", '{"a": "}{", "b": {"c": 1.50}}'), ToolCall("g", "{}")]
    expected = Message(role="assistant", content="so", tool_calls=calls)
    for thinking in (True, False):
        for place in range(len(text) + 1):
            parser = EXP.parser(thinking=thinking, tools=True)
            events = parser.feed(text[:place]) + parser.feed(text[place:]) + parser.finish()
            assert message_of(events) == expected, place


def test_exps_broken_calls_are_content_and_never_end_as_json():
    block = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
    whole = block + '{"a": {"b": 1}} x}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    for text in [
        whole,
        block + "5<｜tool▁call▁end｜>",
        block + "{}}",
        block + "{} } ",
        *(whole[:size] for size in range(len(whole))),
    ]:
        random = Random(len(text))
        results = []
        for pieces in ([text], list(text), [text[: (cut := random.randint(0, len(text)))], text[cut:]]):
            parser = EXP.parser(thinking=False, tools=True)
            events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
            results.append(message_of(events))
            assert not any(isinstance(event, ToolCallEnd) for event in events)
            arguments = "".join(event.fragment for event in events if isinstance(event, ToolCallArguments))
            if any(isinstance(event, ToolCallStart) for event in events) and arguments:
                with pytest.raises(ValueError):
                    json.loads(arguments)
        assert results == [Message(role="assistant", content=text, tool_calls=[])] * 3


def test_the_tokenizer_says_which_format():
    assert format_of(Tokenizer(tiny_tokenizer())) == "deepseek-v3.2"
