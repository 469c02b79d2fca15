"""Grammars of tool calls: what is drawn from them parses and fits its schema; what the format writes is let through."""

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import InvalidRequest
from baleen.text.answer_grammar import AnswerForm, answer_constraint
from baleen.text.call_forms import ToolForm
from baleen.text.chat_format import FORMATS
from baleen.text.encoding_v32 import Message, ToolCall, encode_messages
from baleen.text.encoding_v32_exp import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR
from baleen.text.grammars import Grammars, check
from baleen.text.output_events import message_of
from baleen.text.tokenizer import Tokenizer
from baleen.text.tokenizer_files import EOS_TOKEN
from tests.support.grammar_walk import walk
from tests.support.real_tokenizer import real_tokenizer
from tests.support.tiny_tokenizer import tiny_tokenizer

TINY = Tokenizer(tiny_tokenizer())
VOCAB = 512
NAMES = list(FORMATS)

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        },
        "required": ["city", "days"],
    },
    "note": {
        "type": "object",
        "properties": {
            "text": {"type": ["string", "null"], "maxLength": 5},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]?$"},
            "day": {"type": "string", "format": "date"},
            "where": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 4}, {"$ref": "#/$defs/point"}]},
            "any": {},
        },
        "required": [],
        "additionalProperties": False,
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"],
                            "additionalProperties": False}},
    },
    "nothing": {"type": "object", "properties": {}},
    "extra": {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"type": "boolean"}},
}  # fmt: skip
TOOLS = [ToolForm(name, schema) for name, schema in SCHEMAS.items()]


def grammars_of(tokenizer, vocab_size):
    (eos,) = tokenizer.encode(EOS_TOKEN)
    return Grammars(tokenizer, vocab_size=vocab_size, eos_token_ids=(eos,))


GRAMMARS = grammars_of(TINY, VOCAB)


@pytest.fixture(scope="module")
def real():
    return grammars_of(real_tokenizer(), 129_280)


def constraint_of(name, tokenizer=TINY, **form):
    answer = AnswerForm(**({"tools": TOOLS, "opened": None, "many": True} | form))
    constraint = answer_constraint(answer, FORMATS[name].calls, tokenizer)
    check(constraint)
    return constraint


def parsed(name, text, *, thinking=False):
    parser = FORMATS[name].parser(thinking=thinking, tools=True)
    return message_of([*parser.feed(text), *parser.finish()])


def require_good(message, schemas=SCHEMAS):
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("opened", "many"), [("weather", False), ("note", True), ("", True), ("extra", False)])
def test_a_call_that_must_come_parses_and_fits(name, opened, many):
    constraint = constraint_of(name, opened=opened, many=many)
    good = 0
    for seed in range(16):
        text = walk(GRAMMARS, constraint, TINY, vocab_size=VOCAB, seed=seed, most=600)
        if text is None:
            continue
        message = parsed(name, FORMATS[name].calls.opening(opened) + text)
        assert message.tool_calls and not message.content, text
        assert many or len(message.tool_calls) == 1
        assert not opened or message.tool_calls[0].name == opened
        require_good(message)
        good += 1
    assert good >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_real_vocabulary_writes_calls(name, real):
    tokenizer = real_tokenizer()
    constraint = constraint_of(name, tokenizer, opened="", many=True)
    good = 0
    for seed in range(3):
        text = walk(real, constraint, tokenizer, vocab_size=129_280, seed=seed, most=300)
        if text is not None:
            message = parsed(name, FORMATS[name].calls.opening("") + text)
            assert message.tool_calls and not message.content, text
            require_good(message)
            good += 1
    assert good


def accepts(constraint, text, tokenizer, grammars):
    matcher, ids = grammars.matcher(constraint), tokenizer.encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


CALLS = [
    ToolCall("weather", '{"city": "Kö</x> < ln\\n\\"", "unit": "c", "days": 3, "tags": ["a", "b"]}'),
    ToolCall("note", '{"text": null, "code": "AB1", "day": "2024-02-29", "where": {"x": 1.5}, "any": [{"k": "v"}]}'),
    ToolCall("note", '{"where": "here", "any": "text"}'),
    ToolCall("nothing", "{}"),
    ToolCall("extra", '{"a": 1, "more": true}'),
]


def written(name, calls, content=""):
    """Calls as the format's own encoder writes them."""
    if name == "deepseek-v3.2":
        messages = [Message(role="assistant", content=content, tool_calls=calls)]
        return encode_messages(messages, thinking=False, begin=False).removesuffix(EOS_TOKEN)
    block = "".join(CALL_BEGIN + call.name + SEPARATOR + call.arguments + CALL_END for call in calls)
    return content + CALLS_BEGIN + block + CALLS_END


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocabulary", ["tiny", "real"])
def test_what_the_format_writes_is_let_through(name, vocabulary, real):
    tokenizer, grammars = (TINY, GRAMMARS) if vocabulary == "tiny" else (real_tokenizer(), real)
    auto = constraint_of(name, tokenizer)
    for text in ("", "hello < </ world", written(name, CALLS[:1], "Let me see"), written(name, CALLS)):
        assert accepts(auto, text, tokenizer, grammars), text
    assert not accepts(auto, written(name, CALLS) + "!", tokenizer, grammars)
    wrong = ToolCall("weather", '{"city": "a", "days": 15}')
    assert not accepts(auto, written(name, [wrong]), tokenizer, grammars)
    assert not accepts(auto, written(name, [ToolCall("weather", '{"days": 1}')]), tokenizer, grammars)
    assert not accepts(auto, written(name, [ToolCall("other", "{}")]), tokenizer, grammars)
    one = constraint_of(name, tokenizer, many=False)
    assert accepts(one, written(name, CALLS[:1]), tokenizer, grammars)
    assert not accepts(one, written(name, CALLS[:2]), tokenizer, grammars)


@pytest.mark.parametrize("name", NAMES)
def test_tools_that_are_not_strict_take_anything(name):
    loose = constraint_of(name, tools=[ToolForm("weather", None), TOOLS[1]])
    text = written(name, [ToolCall("weather", '{"q": "x", "deep": {"a": [1]}}')])
    assert accepts(loose, text, TINY, GRAMMARS)
    assert not accepts(loose, written(name, [ToolCall("note", '{"code": "abc"}')]), TINY, GRAMMARS)


@pytest.mark.parametrize("name", NAMES)
def test_thinking_is_free_and_the_answer_is_not(name, real):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for tokenizer, grammars in ((TINY, GRAMMARS), (real_tokenizer(), real)):
        form = constraint_of(name, tokenizer, otherwise=schema, thinking=True)
        calls = written(name, CALLS[:1])
        for text in ('hm\n\n{"a"</think>{"a": 5}', f"hm</think>{calls}"):
            assert accepts(form, text, tokenizer, grammars), text
        for text in ('{"a": 5}', 'hm</think>{"a": "5"}', f"hm{calls}", "hm</think>text"):
            assert not accepts(form, text, tokenizer, grammars), text
        free = constraint_of(name, tokenizer, thinking=True)
        assert accepts(free, f"hm</think>So: {calls}", tokenizer, grammars)
        assert accepts(free, "hm</think>text", tokenizer, grammars)
        assert not accepts(free, "hm", tokenizer, grammars)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_must_come_comes_once_it_has_thought(name, real):
    opening = FORMATS[name].calls.opening
    for tokenizer, grammars in ((TINY, GRAMMARS), (real_tokenizer(), real)):
        for opened, calls in (("weather", CALLS[:1]), ("", CALLS)):
            form = constraint_of(name, tokenizer, opened=opened, thinking=True)
            text = f"hm {{</think>{written(name, calls)}"
            assert opening(opened) in text and accepts(form, text, tokenizer, grammars)
            message = parsed(name, text, thinking=True)
            assert (message.reasoning, message.content, list(message.tool_calls)) == ("hm {", "", calls)
            for wrong in (f"hm{written(name, calls)}", "hm</think>text", f"hm</think>so{written(name, calls)}"):
                assert not accepts(form, wrong, tokenizer, grammars), wrong
            # nor in other tokens than those that mark a call
            assert not accepts_letters(form, f"hm{opening(opened)}", tokenizer, grammars)
        assert not accepts(constraint_of(name, tokenizer, opened="note", thinking=True), text, tokenizer, grammars)


def letters_of(text, tokenizer):
    """Tokens of a text without any that marks something."""
    return [token for char in text for token in tokenizer.encode(char)]


def accepts_letters(constraint, text, tokenizer, grammars):
    ids = letters_of(text, tokenizer)
    return grammars.matcher(constraint).try_consume_tokens(ids) == len(ids)


TAGS = (
    *('<｜DSML｜parameter name="a" string="false">', "</｜DSML｜parameter>", "</｜DSML｜invoke>"),
    *("</｜DSML｜function_calls>", CALL_BEGIN, CALL_END, CALLS_END, "</think>"),
    *("\n", '"', "\\", "x", "</", "<｜"),
)
LETTERS = ToolForm("f", {"type": "object", "properties": {"a": {}, "b": {"type": "array"}}, "required": ["a"]})
texts_with_tags = st.lists(st.sampled_from(TAGS), max_size=4).map("".join)
any_values = st.recursive(texts_with_tags | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("vocabulary", ["tiny", "real"])
def test_whatever_a_grammar_lets_a_string_hold_is_read_as_it_was_written(name, vocabulary, real):
    tokenizer, grammars = (TINY, GRAMMARS) if vocabulary == "tiny" else (real_tokenizer(), real)
    forms = [constraint_of(name, tokenizer, tools=[tool], opened="f") for tool in (LETTERS, ToolForm("f", None))]
    opening, seen = FORMATS[name].calls.opening("f"), set()

    @settings(max_examples=60, deadline=None)
    @given(any_values, st.lists(any_values, min_size=1, max_size=2))
    def check_one(first, second):
        arguments = json.dumps({"a": first, "b": second}, ensure_ascii=False)
        block = written(name, [ToolCall("f", arguments)]).removeprefix(opening)
        ids = marked(block, [first, second], name, tokenizer)
        for form in forms:
            matcher = grammars.matcher(form)
            if matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting():
                (call,) = parsed(name, opening + block).tool_calls
                assert json.loads(call.arguments) == {"a": first, "b": second}
                seen.add(any(tag in arguments for tag in ("</｜DSML｜parameter>", CALL_END)))

    check_one()
    assert seen == {True, False}


def marked(block, values, name, tokenizer):
    """Tokens of a block, with those that mark its parts, but none inside its values."""
    pieces, ids = [block], []
    for value in values:
        text = json.dumps(value, ensure_ascii=False)
        shown = value if isinstance(value, str) and name == "deepseek-v3.2" else text
        head, _, tail = pieces.pop().partition(f">{shown}<" if name == "deepseek-v3.2" else f": {shown}")
        edge = (">", "<") if name == "deepseek-v3.2" else (": ", "")
        ids += tokenizer.encode(head + edge[0]) + letters_of(shown, tokenizer)
        pieces.append(edge[1] + tail)
    return ids + tokenizer.encode(pieces[0])


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "array"}, "type is 'array', arguments are an object"),
        ({"anyOf": [{}]}, "anyOf of an object of arguments cannot be enforced"),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "'b' is required and is no property"),
        ({"type": "object", "properties": {'a"b': {}}}, "cannot write"),
        ({"type": "object", "properties": {"a": {"enum": ["x｜DSML｜"]}}}, "which ends it"),
        ({"type": "object", "properties": []}, "properties must be an object"),
        ({"$ref": "#/$defs/a"}, "does not exist"),
    ],
)
def test_arguments_that_cannot_be_enforced_are_refused(schema, problem):
    with pytest.raises(InvalidRequest, match=problem) as caught:
        constraint_of("deepseek-v3.2", tools=[ToolForm("f", schema, "tools[0].function.parameters")])
    assert caught.value.field == "tools[0].function.parameters"


def test_formats_of_dates_are_those_of_the_calendar():
    schema = {"type": "object", "properties": {"d": {"type": "string", "format": "date"}}, "required": ["d"]}
    constraint = constraint_of("deepseek-v3.2", tools=[ToolForm("f", schema)], opened="f")
    for day, good in {
        "2024-02-29": True, "2023-02-29": False, "2000-02-29": True, "1900-02-29": False, "2024-12-31": True,
        "2024-04-31": False, "2024-13-01": False, "24-01-01": False, "2010-01-05": True,
    }.items():  # fmt: skip
        text = written("deepseek-v3.2", [ToolCall("f", json.dumps({"d": day}))])
        rest = text.removeprefix(FORMATS["deepseek-v3.2"].calls.opening("f"))
        assert accepts(constraint, rest, TINY, GRAMMARS) is good, day
