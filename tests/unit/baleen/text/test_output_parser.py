"""Outputs taken apart as they come: for every way to cut them, what the whole text gives; and no half tag goes out."""

import json
from itertools import combinations, pairwise
from random import Random

import pytest

from baleen.text.encoding_v32 import CALLS_BEGIN, DSML, Message, ToolCall
from baleen.text.output_events import (
    Content,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    message_of,
)
from baleen.text.output_parser import OutputParser
from tests.support.model_outputs import right_output, wrong_output
from tests.support.strict_parser import strict_parse

NUM_OUTPUTS = 2000
PIECE_SIZES = (1, 2, 5)
CALL = (
    f'{CALLS_BEGIN}\n<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">x"\n<y</{DSML}parameter>\n'
    f'<{DSML}parameter name="b" string="false">[1.50]</{DSML}parameter>\n</{DSML}invoke>\n</{DSML}function_calls>'
)


def parse(pieces, *, thinking=False, tools=True):
    """Events, with those of the same call or kind that follow each other put together."""
    parser = OutputParser(thinking=thinking, tools=tools)
    events = []
    for event in [event for piece in pieces for event in parser.feed(piece)] + parser.finish():
        last = events[-1] if events else None
        match last, event:
            case (Reasoning(a), Reasoning(b)):
                events[-1] = Reasoning(a + b)
            case (Content(a), Content(b)):
                events[-1] = Content(a + b)
            case (ToolCallArguments(index, a), ToolCallArguments(other, b)) if index == other:
                events[-1] = ToolCallArguments(index, a + b)
            case _:
                events.append(event)
    return events


def cut(text, places):
    return [text[a:b] for a, b in pairwise([0, *sorted(places), len(text)])]


def every_cut_in_one_of(text):
    """Splits into pieces of equal size, beginning everywhere: every place is a cut in one of each size, and every run
    of so many characters is a piece; so whatever is kept from piece to piece is met from each state of the text.
    """
    for size in PIECE_SIZES:
        for start in range(size):
            yield cut(text, range(start, len(text), size))


@pytest.mark.slow
@pytest.mark.parametrize("make", [right_output, wrong_output])
def test_any_cut_of_generated_outputs_gives_what_the_whole_text_gives(make):
    accepted = 0
    for seed in range(NUM_OUTPUTS // 2):
        random = Random(seed)
        mode = {"thinking": random.random() < 0.5, "tools": random.random() < 0.8}
        text = make(random, thinking=mode["thinking"])
        whole = parse([text], **mode)
        some = [random.randint(0, len(text)) for _ in range(random.randint(1, 12))]
        assert parse(cut(text, some), **mode) == whole, (seed, some)
        for pieces in every_cut_in_one_of(text):
            assert parse(pieces, **mode) == whole, (seed, pieces)
        expected = strict_parse(text, thinking=mode["thinking"]) if mode["tools"] else None
        if expected is not None and all(_is_object(call.arguments) for call in expected.tool_calls):
            accepted += 1
            assert message_of(whole) == expected, seed
        for call in message_of(whole).tool_calls:
            assert isinstance(json.loads(call.arguments), dict)
    assert accepted > (NUM_OUTPUTS // 3 if make is right_output else 20)


def _is_object(arguments):
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


def test_every_one_and_two_cuts_of_short_outputs():
    texts = [f"why</think>so\n\n{CALL}", f"\n\n\n{CALLS_BEGIN} no", f"a</thi</think>\n\n<{DSML}", f"r{CALL}x"]
    for text in texts:
        for thinking in (True, False):
            whole = parse([text], thinking=thinking)
            short = len(text) < 40
            for places in combinations(range(len(text) + 1), 2 if short else 1):
                assert parse(cut(text, places), thinking=thinking) == whole, places


@pytest.mark.parametrize("tag", ["</think>", f"\n\n{CALLS_BEGIN}", f"</{DSML}parameter>"])
def test_no_part_of_a_tag_goes_out_before_it_is_disproved(tag):
    before = {"</think>": "why", f"</{DSML}parameter>": CALL.partition("</")[0]}.get(tag, "so")
    for size in range(1, len(tag)):
        parser = OutputParser(thinking=tag == "</think>", tools=True)
        parser.feed(before)
        assert parser.feed(tag[:size]) == [], tag[:size]
        # As soon as the next character disproves the tag, all of it goes out.
        out = parser.feed("§")
        assert len(out) == 1
        shown = next(getattr(out[0], name) for name in ("text", "fragment") if hasattr(out[0], name))
        assert shown == json.dumps(tag[:size] + "§", ensure_ascii=False)[1:-1] or shown == tag[:size] + "§"


def test_a_name_and_arguments_go_out_as_soon_as_they_are_known():
    parser = OutputParser(thinking=False, tools=True)
    seen = [(char, event) for char in "so\n\n" + CALL for event in parser.feed(char)]
    events = [event for _, event in seen]
    assert events[:2] == [Content("s"), Content("o")]
    assert seen[2] == (">", ToolCallStart(0, "f")) and seen[3] == (">", ToolCallArguments(0, "{"))
    fragments = [event.fragment for event in events if isinstance(event, ToolCallArguments)]
    assert fragments == ["{", '"a": "', "x", '\\"', "\\n", "<y", '"', ', "b": [1.50]', "}"]
    assert events[-1] == ToolCallEnd(0) and parser.finish() == [] and parser.problem is None


FIRST = f'\n\n{CALLS_BEGIN}\n<{DSML}invoke name="f">\n\n</{DSML}invoke>'
BAD = f'\n<{DSML}invoke name="g">\n<{DSML}parameter name="a" string="false">nope</{DSML}parameter>\n'
F = ToolCall("f", "{}")


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"a{FIRST}\n</{DSML}function_calls>", "a", [F]),
        (f"a{FIRST}", "a", [F]),
        (f"a{FIRST}\n</{DSML}function_calls>\n more", "amore", [F]),
        (f"a{FIRST}{BAD}</{DSML}invoke>", f"a{BAD}</{DSML}invoke>", [F]),
        (f"a\n\n{CALLS_BEGIN}{BAD}", f"a\n\n{CALLS_BEGIN}{BAD}", []),
        (FIRST[:-8], FIRST[:-8], []),
        (f"a\n\n{CALLS_BEGIN}\nx", f"a\n\n{CALLS_BEGIN}\nx", []),
        (f"a\n\n{CALLS_BEGIN}{FIRST}", f"a\n\n{CALLS_BEGIN}", [F]),
        (f"a{FIRST.replace('f', 'f' * 1100, 1)}", f"a{FIRST.replace('f', 'f' * 1100, 1)}", []),
        ("</think>a</think>b", "a</think>b", []),
    ],
)
def test_malformed_calls_are_content_and_complete_ones_stand(text, content, calls):
    got = message_of(parse([text]))
    assert (got.content, got.tool_calls) == (content, calls)


IN_STRING = f'["x</{DSML}parameter>\\n", "\\"</{DSML}parameter>\\\\", "</{DSML}invoke>"]'


def test_a_tag_inside_a_string_of_json_ends_nothing():
    text = f"\n\n{CALL}".replace("[1.50]", IN_STRING)
    whole = parse([text])
    (call,) = message_of(whole).tool_calls
    assert call.arguments == '{"a": "x\\"\\n<y", "b": ' + IN_STRING + "}"
    for place in range(len(text)):
        assert parse([text[:place], text[place:]]) == whole, place


@pytest.mark.parametrize(
    "value", [f'"x</{DSML}parameter>\nmore"', f'"x</{DSML}parameter>', '"x', f'a"</{DSML}parameter>"']
)
def test_a_string_that_does_not_end_is_a_malformed_call_and_a_later_block_is_read(value):
    text = f"\n\n{CALL}".replace("[1.50]", value)
    whole = parse([f"a{text}{FIRST}"])
    assert message_of(whole) == Message(role="assistant", content=f"a{text}", reasoning="", tool_calls=[F])
    for pieces in every_cut_in_one_of(f"a{text}{FIRST}"):
        assert parse(pieces) == whole


def test_the_arguments_of_a_call_that_turned_out_malformed_are_no_json():
    events = parse([f"a{FIRST}{BAD}"])
    assert [event for event in events if isinstance(event, ToolCallEnd)] == [ToolCallEnd(0)]
    assert events[-3:] == [ToolCallStart(1, "g"), ToolCallArguments(1, "{"), Content(BAD)]


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("why</think>so", "why", "so"),
        ("<think>why</think>so", "why", "so"),
        ("why", "why", ""),
        ("why</thin", "why</thin", ""),
        ("</think>so", "", "so"),
        ("a</think>b</think>c", "a", "b</think>c"),
    ],
)
def test_reasoning_ends_once(text, reasoning, content):
    expected = Message(role="assistant", reasoning=reasoning, content=content, tool_calls=[])
    assert message_of(parse([text], thinking=True)) == expected


def test_calls_end_the_reasoning_and_are_text_where_no_tool_may_be_called():
    text = f"why\n\n{CALL}"
    called = message_of(parse([text], thinking=True))
    assert (called.reasoning, [call.name for call in called.tool_calls]) == ("why", ["f"])
    assert message_of(parse([text], thinking=True, tools=False)).reasoning == text
    assert message_of(parse([text], tools=False)).content == text


def test_a_parser_says_whether_reasoning_goes_on():
    parser = OutputParser(thinking=True, tools=False)
    parser.feed("why</think")
    assert parser.thinking
    parser.feed(">")
    assert not parser.thinking


def test_a_long_value_costs_in_proportion_to_its_length():
    parser = OutputParser(thinking=False, tools=True)
    head, _, tail = f"\n\n{CALL}".partition("[1.50]")
    parser.feed(head)
    for _ in range(50_000):
        assert parser.feed("[[[[[[[[") == []
    events = parser.feed(tail) + parser.finish()
    assert message_of(events).tool_calls == [] and parser.problem == "parameter b of f is not JSON"
