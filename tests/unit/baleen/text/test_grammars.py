"""Constraints: what they let through and what not, against Python's `re` and the `jsonschema` package."""

import json
import re
import string

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.constraint import MAX_CHARS, Constraint
from baleen.errors import InvalidRequest
from baleen.text.grammars import Grammars, check
from baleen.text.tokenizer import Tokenizer
from tests.support.grammar_walk import walk
from tests.support.real_tokenizer import real_tokenizer
from tests.support.tiny_tokenizer import tiny_tokenizer

TINY = Tokenizer(tiny_tokenizer())
VOCAB = 512
GRAMMARS = Grammars(TINY, vocab_size=VOCAB, eos_token_ids=(TINY.encode("<｜end▁of▁sentence｜>")[0],))
REAL_VOCAB = 129_280


def accepts(constraint, text, tokenizer=TINY, grammars=GRAMMARS):
    """Whether a whole answer may be this text."""
    matcher, ids = grammars.matcher(constraint), tokenizer.encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def of_schema(schema, **fields):
    return Constraint(kind="json_schema", text=json.dumps(schema), **fields)


@pytest.fixture(scope="module")
def real():
    return Grammars(real_tokenizer(), vocab_size=REAL_VOCAB, eos_token_ids=(1,))


EXPRESSIONS = [
    "abc",
    "a|bc|",
    "[a-c]{2,3}x?",
    r"\d+(\.\d{1,2})?",
    r"(ab|a)(c|bcd)*",
    r"[^ab]*b",
    r"\w+@\w+\.(com|org)",
    r"(a.c|\s)+",
    "(?:é|日本)+",
    r"[A-Z][a-z]{0,3}( [A-Z][a-z]{0,3})*",
    r"x*y*z*",
    r"(a(b(c)?)?)?d",
]


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(st.sampled_from(EXPRESSIONS), st.data())
def test_an_expression_means_what_it_means_to_python(expression, data):
    # beyond these, Python and Unicode differ about what is a letter, a digit or white space
    letters = st.sampled_from(string.printable + "é日本")
    texts = st.from_regex(re.compile(expression), fullmatch=True, alphabet=letters) | st.text(
        "abcdxyz .5@é日本\n", max_size=6
    )
    text = data.draw(texts)
    assert accepts(Constraint(kind="regex", text=expression), text) is bool(re.fullmatch(expression, text))


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["x", 1, None, {"k": [1]}]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": -3, "maximum": 12}]},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-f]+(-[0-9]{2})?$"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object", "properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/tree"}},
        "required": ["v"], "additionalProperties": False,
    }}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "array", "prefixItems": [{"const": "first"}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": ["string", "null"]},
    {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["b"]}]},
    {"type": "object", "patternProperties": {"^x_": {"type": "boolean"}}, "additionalProperties": False},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
    {"type": "integer", "multipleOf": 5},
    {},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=[str(place) for place in range(len(SCHEMAS))])
def test_whatever_is_drawn_fits_the_schema(schema):
    drawn = [walk(GRAMMARS, of_schema(schema), TINY, vocab_size=VOCAB, seed=seed, most=600) for seed in range(12)]
    answers = [json.loads(text) for text in drawn if text is not None]
    assert len(answers) >= 3
    for answer in answers:
        jsonschema.validate(answer, schema)


@pytest.mark.parametrize("place", [0, 1, 6])
def test_the_real_vocabulary_keeps_to_a_schema(place, real):
    tokenizer, schema = real_tokenizer(), SCHEMAS[place]
    drawn = [walk(real, of_schema(schema), tokenizer, vocab_size=REAL_VOCAB, seed=seed, most=300) for seed in range(4)]
    assert any(drawn)
    for text in filter(None, drawn):
        jsonschema.validate(json.loads(text), schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(string.printable + "é日🐳", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=3), json_values, max_size=3
    ),
    st.sampled_from([None, 2]),
)
def test_every_object_is_a_json_object(value, indent):
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert accepts(Constraint(kind="json_object"), text)
    assert not accepts(Constraint(kind="json_object"), text[:-1])
    assert not accepts(Constraint(kind="json_object"), f"[{text}]")


def test_grammars_come_in_two_notations():
    lark = Constraint(kind="grammar", text='start: "a" B+\nB: /[0-9]/')
    gbnf = Constraint(kind="grammar", text='root ::= "a" digit+\ndigit ::= [0-9]')
    for constraint in (lark, gbnf):
        assert accepts(constraint, "a12") and not accepts(constraint, "a") and not accepts(constraint, "b1")


@pytest.mark.parametrize("kind", ["json_object", "regex", "grammar"])
def test_free_text_comes_first_where_it_may(kind, real):
    text, good = {"regex": ("[ab]+", "ab"), "grammar": ('root ::= "x"', "x"), "json_object": ("", '{"k": 1}')}[kind]
    constraint = Constraint(kind=kind, text=text, after="</think>")
    for tokenizer, grammars in ((TINY, GRAMMARS), (real_tokenizer(), real)):
        assert accepts(constraint, f"hm < {{\n\n</think>{good}", tokenizer, grammars)
        assert accepts(constraint, f"</think>{good}", tokenizer, grammars)
        assert not accepts(constraint, good, tokenizer, grammars)
        assert not accepts(constraint, f"a</think></think>{good}", tokenizer, grammars)
        assert not accepts(constraint, f"a</think>{good}!", tokenizer, grammars)
    spelled = Constraint(kind=kind, text=text, after="=>")
    assert accepts(spelled, f"a = >=>{good}") and not accepts(spelled, f"=>=>{good}")


def test_added_tokens_are_no_text(real):
    constraint = Constraint(kind="regex", text="(?s:.*)")
    think, dsml = real_tokenizer().encode("<think>")[0], real_tokenizer().encode("｜DSML｜")[0]
    for token in (0, 2, think, dsml, 128_815, REAL_VOCAB - 1):
        assert not real.matcher(constraint).consume_token(token)


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("json_schema", "{", "the schema is no JSON"),
        ("json_schema", "[1]", "the schema is list, must be an object"),
        ("json_schema", '{"type": "strin"}', "strin"),
        ("json_schema", '{"uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {}}', "not"),
        ("json_schema", '{"$ref": "#/$defs/a"}', "a"),
        ("json_schema", '{"$ref": "http://127.0.0.1:1/a"}', "http"),
        ("json_schema", '{"enum": []}', "Unsatisfiable"),
        ("json_schema", '{"a":' * 70 + "{}" + "}" * 70, "deeper than 64 levels"),
        ("json_schema", json.dumps({"enum": [10**400]}), "not JSON serializable"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("grammar", 'root ::= "a', "Unexpected end"),
        ("grammar", 'root ::= "a" x', "'x' not found"),
        ("grammar", "start: x", "x"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(kind, text, problem):
    constraint = Constraint(kind=kind, text=text)
    for refuse in (check, GRAMMARS.matcher):
        with pytest.raises(InvalidRequest, match=re.escape(problem)) as caught:
            refuse(constraint)
        assert caught.value.field == "constraint.text" and len(str(caught.value)) < 400


def test_keywords_that_cannot_be_enforced_are_passed_over_if_asked_to():
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert accepts(of_schema(schema, lenient=True), "[1, 1]")
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        check(of_schema(schema))


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"kind": "xml", "text": "a"}, "constraint.kind", "'xml', must be one of json_object"),
        ({"kind": "regex"}, "constraint.text", "is empty"),
        ({"kind": "json_object", "text": "a"}, "constraint.text", "must be empty"),
        ({"kind": "regex", "text": "a" * (MAX_CHARS + 1)}, "constraint.text", "131073 characters, at most 131072"),
        ({"kind": "regex", "text": "a", "after": "b" * 65}, "constraint.after", "65 characters, at most 64"),
        ({"kind": "regex", "text": "\ud800"}, "constraint.text", "surrogate"),
    ],
)
def test_limits_of_a_constraint(fields, field, problem):
    with pytest.raises(InvalidRequest, match=problem) as caught:
        Constraint(**fields)
    assert caught.value.field == field


def test_recent_grammars_are_kept_and_each_answer_has_its_own():
    grammars = Grammars(TINY, vocab_size=VOCAB, eos_token_ids=(1,))
    for number in range(300):
        grammars.matcher(Constraint(kind="regex", text=f"a{number}"))
    assert len(grammars._ready) == 256
    constraint = Constraint(kind="regex", text="ab")
    first, second = grammars.matcher(constraint), grammars.matcher(constraint)
    assert first.consume_tokens(TINY.encode("ab")) and second.consume_tokens(TINY.encode("ab"))


def test_a_grammar_that_costs_too_much_is_refused_or_ends():
    """Neither may take long: the limits are counted in work, not in time."""
    wide = of_schema({"enum": [f"{number:05}" * 4 for number in range(4000)]})
    try:
        GRAMMARS.matcher(wide)
    except InvalidRequest as error:
        assert error.field == "constraint.text"
    matcher = GRAMMARS.matcher(Constraint(kind="regex", text="(a|b)*a(a|b){24}"))
    ids = TINY.encode("ab" * 3000)
    matcher.try_consume_tokens(ids)
