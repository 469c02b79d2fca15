"""The form of an answer: from the fields of each dialect to the constraint, and refusals that name the field."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest

from baleen.constraint import Constraint
from baleen.errors import InvalidRequest, QueueFull
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import Tokenizer
from router.gateway.chat.reader import read_chat
from router.gateway.chat.request import ChatLimits
from router.gateway.completions.reader import read_text
from router.gateway.forms import MOST_KNOWN, MOST_WAITING, Forms
from router.gateway.messages.reader import read_message
from router.gateway.models import ModelNames
from router.gateway.responses.reader import read_response
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
USER = {"role": "user", "content": "json, please"}


async def encode(text):
    return TOKENIZER.encode(text)


def gateway(name="deepseek-v3.2"):
    return SimpleNamespace(
        engine=SimpleNamespace(format=FORMATS[name], encode=encode, tokenizer=TOKENIZER, forms=Forms()),
        names=ModelNames("baleen"),
        limits=ChatLimits(),
        max_context=100_000,
        fingerprint="fp",
    )


GATEWAY = gateway()


def read(reader, body, where=GATEWAY):
    asked, _, _ = asyncio.run(reader({"model": "deepseek-chat", **body}, where))
    return asked[0] if isinstance(asked, tuple) else asked


def chat(where=GATEWAY, **body):
    return read(read_chat, {"messages": [USER], **body}, where)


def constraint(**body):
    return chat(**body).sampling.constraint


def tool(name="f", *, strict=None, parameters=SCHEMA):
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": function if strict is None else function | {"strict": strict}}


def schema_format(strict=True, schema=SCHEMA):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": strict}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(kind="json_object")),
        ({"response_format": schema_format()}, Constraint(kind="json_schema", text=json.dumps(SCHEMA))),
        (
            {"response_format": schema_format(None)},
            Constraint(kind="json_schema", text=json.dumps(SCHEMA), lenient=True),
        ),
        ({"response_format": {"type": "regex", "regex": "a+"}}, Constraint(kind="regex", text="a+")),
        ({"structured_outputs": {"regex": "a+", "json": None}}, Constraint(kind="regex", text="a+")),
        ({"structured_outputs": {"json_object": True}}, Constraint(kind="json_object")),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint(kind="json_schema", text=json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, Constraint(kind="json_schema", text=json.dumps(SCHEMA))),
        ({"guided_json": SCHEMA}, Constraint(kind="json_schema", text=json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Constraint(kind="regex", text="a+")),
        ({"regex": "a+"}, Constraint(kind="regex", text="a+")),
        ({"guided_grammar": 'root ::= "a"'}, Constraint(kind="grammar", text='root ::= "a"')),
        ({"ebnf": 'root ::= "a"'}, Constraint(kind="grammar", text='root ::= "a"')),
        (
            {"guided_choice": ["yes", 'n"o']},
            Constraint(kind="grammar", text='%llguidance {}\n\nstart: "yes" | "n\\"o"\n'),
        ),
    ],
)
def test_fields_become_a_constraint(fields, expected):
    assert constraint(**fields) == expected
    assert read(read_text, {"prompt": "p", **fields}).sampling.constraint == expected


def test_a_form_begins_after_the_thinking():
    made = constraint(response_format={"type": "json_object"}, thinking={"type": "enabled"})
    assert made == Constraint(kind="json_object", after="</think>")


def test_the_model_is_told_of_a_schema():
    asked = chat(response_format=schema_format())
    assert json.dumps(SCHEMA) in TOKENIZER.decode(asked.prompt)


def test_other_dialects_have_forms_too():
    form = {"type": "json_schema", "schema": SCHEMA, "name": "n", "strict": True}
    expected = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
    assert read(read_response, {"input": "json", "text": {"format": form}}).sampling.constraint == expected
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert read(read_message, {**body, "output_config": config}).sampling.constraint == expected
    tools = [{"name": "f", "input_schema": SCHEMA}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "f"}):
        made = read(read_message, {**body, "tools": tools, "tool_choice": choice}).sampling.constraint
        assert made is not None and made.kind == "grammar"


@pytest.mark.parametrize("name", list(FORMATS))
def test_calls_are_kept_to_their_schemas_where_they_must_be(name):
    where = gateway(name)
    assert chat(where, tools=[tool()]).sampling.constraint is None
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        asked = chat(where, tools=[tool()], tool_choice=choice)
        assert asked.sampling.constraint.kind == "grammar" and asked.opening == FORMATS[name].calls.opening("f")
        assert TOKENIZER.decode(asked.prompt).endswith(asked.opening)
    strict = chat(where, tools=[tool(strict=True), tool("g")]).sampling.constraint
    assert strict is not None and "BEFORE" in strict.text
    single = chat(where, tools=[tool(strict=True), tool("g")], parallel_tool_calls=False)
    assert single.sampling.constraint != strict and single.one_call
    assert chat(where, tools=[tool(strict=True)], tool_choice="none").sampling.constraint is None
    either = chat(where, tools=[tool()], response_format={"type": "json_object"}).sampling.constraint
    assert "json: %json" in either.text
    thinking = chat(where, tools=[tool(strict=True)], thinking={"type": "enabled"}).sampling.constraint
    assert "THOUGHT" in thinking.text


BAD_SCHEMA = {"type": "object", "properties": {"a": {"not": {}}}}


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be text, json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
            "object",
        ),
        ({"response_format": schema_format(schema=BAD_SCHEMA)}, "response_format.json_schema.schema", "not"),
        ({"response_format": {"type": "regex", "regex": "("}}, "response_format.regex", "unclosed group"),
        ({"response_format": {"type": "regex"}}, "response_format.type", "regex with its regex"),
        ({"regex": "a", "ebnf": "b"}, "ebnf", "cannot be used with regex"),
        ({"response_format": schema_format(), "guided_regex": "a"}, "guided_regex", "an answer has one form"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "must have one of"),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs", "structural_tag"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex", "int"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "1 to 1024 texts"),
        ({"guided_choice": [1]}, "guided_choice", "1 to 1024 texts"),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        ({"guided_regex": ""}, "guided_regex", "is empty"),
        ({"ebnf": 'root ::= "a" x'}, "ebnf", "'x' not found"),
        ({"guided_json": {"a": 1, "type": "text"}}, "guided_json", "text"),
        ({"regex": "a", "tools": [tool()]}, "regex", "cannot be used with tools"),
        (
            {"tools": [tool(strict=True, parameters={"anyOf": []})]},
            "tools[0].function.parameters",
            "anyOf of an object of arguments cannot be enforced",
        ),
        ({"tools": [tool(parameters=BAD_SCHEMA)], "tool_choice": "required"}, "tools", "not"),
        (
            {"regex": "a", "messages": [USER, {"role": "assistant", "content": "x", "prefix": True}]},
            "regex",
            "the last message is continued",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(fields, field, problem):
    with pytest.raises(InvalidRequest, match=problem) as caught:
        chat(**fields)
    assert caught.value.field == field


def test_other_dialects_name_their_own_fields():
    form = {"type": "json_schema", "schema": BAD_SCHEMA, "name": "n", "strict": True}
    with pytest.raises(InvalidRequest, match=r"^text\.format") as caught:
        read(read_response, {"input": "json", "text": {"format": form}})
    assert caught.value.field == "text.format"
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
    with pytest.raises(InvalidRequest, match=r"^output_config\.format") as caught:
        read(read_message, {**body, "output_config": {"format": {"type": "json_schema", "schema": BAD_SCHEMA}}})
    assert caught.value.field == "output_config.format"
    tools = [{"name": "f", "input_schema": {"anyOf": []}, "strict": True}]
    with pytest.raises(InvalidRequest) as caught:
        read(read_message, {**body, "tools": tools})
    assert caught.value.field == "tools[0].input_schema"


def test_good_forms_are_remembered_and_only_so_many_wait():
    async def scenario():
        forms, calls, go = Forms(), [], threading.Event()

        def make(number):
            calls.append(number)
            go.wait(30)
            return Constraint(kind="regex", text=f"a{number}")

        waiting = [asyncio.create_task(forms.made(str(n), "f", lambda n=n: make(n))) for n in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="64 grammars wait"):
            await forms.made("more", "f", lambda: make(-1))
        go.set()
        await asyncio.gather(*waiting)
        assert await forms.made("5", "f", lambda: make(5)) == Constraint(kind="regex", text="a5")
        assert calls == list(range(MOST_WAITING))
        for number in range(MOST_KNOWN):
            await forms.made(f"x{number}", "f", lambda: Constraint(kind="json_object"))
        assert len(forms._known) == MOST_KNOWN and "5" not in forms._known

    asyncio.run(scenario())


def test_a_chain_of_references_as_long_as_there_is_room_for_ends_nothing():
    """The library follows it by recursion: with a usual stack the gateway would be gone."""
    links = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(3500)} | {"3500": {"type": "null"}}
    assert constraint(guided_json={"$ref": "#/$defs/0", "$defs": links}) is not None
