"""The demo model's data: right by computation, the same for the same seed, and cut into pieces without harm."""

import itertools
import json
import random

import pytest
from tokenizers import Tokenizer

from examples.demo_model import arithmetic
from examples.demo_model.data import FAMILIES, MIXTURES, Stream, sample_pieces, tokenise
from examples.demo_model.export import TOKENIZER


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held_out", [False, True])
def test_pieces_tokenise_as_the_whole_does_and_something_is_learnt(family, held_out, tokenizer):
    rng = random.Random(3)
    for _ in range(40):
        sample = FAMILIES[family](rng, held_out)
        ids, weights = tokenise(sample, tokenizer)
        text = "".join(piece for piece, _ in sample_pieces(sample))
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert weights[-1] == 1.0 and ids[-1] == 1 and ids[0] == 0
        assert weights[0] < 1.0


def test_every_step_of_the_workings_is_true():
    for a, b, operator in itertools.product(range(100), range(100), "+-*"):
        if (operator == "-" and a < b) or (operator == "*" and not 2 <= b <= 9):
            continue
        result = arithmetic.result(a, operator, b)
        steps = arithmetic.working(a, operator, b)
        assert result == {"+": a + b, "-": a - b, "*": a * b}[operator]
        assert steps.endswith(f"Together {result}.")
        for part in steps.replace(":", ",").replace(".", ",").split(","):
            left, equals, right = part.partition("=")
            if equals:
                terms = left.split()
                terms = terms[terms.index(next(t for t in terms if t.isdigit())) :]
                total = int(terms[0])
                for sign, term in zip(terms[1::2], terms[2::2], strict=True):
                    total = {"+": total + int(term), "-": total - int(term), "*": total * int(term)}[sign]
                assert total == int(right)


def test_held_out_problems_never_come_up_in_training():
    rng = random.Random(0)
    for _ in range(3000):
        assert not arithmetic.is_held_out(*arithmetic.problem(rng, False))
        assert arithmetic.is_held_out(*arithmetic.problem(rng, True, two_digits=True))


def test_tool_calls_name_an_offered_tool_with_all_its_parameters():
    rng = random.Random(1)
    for _ in range(200):
        sample = FAMILIES["tools"](rng, False)
        offered = {tool["name"]: set(tool["parameters"]["required"]) for tool in sample.messages[0].tools}
        for message in sample.messages:
            for call in message.tool_calls:
                assert set(json.loads(call.arguments)) == offered[call.name]


def test_json_answers_have_the_schema_s_fields_in_order():
    rng = random.Random(2)
    for _ in range(200):
        sample = FAMILIES["json"](rng, False)
        schema = sample.messages[0].response_format
        assert list(json.loads(sample.messages[-1].content)) == schema["required"] == list(schema["properties"])


@pytest.mark.parametrize("shares", [shares for _, _, shares in MIXTURES])
def test_a_stream_keeps_the_shares_and_goes_on_where_it_was(shares, tokenizer):
    stream = Stream(tokenizer, 7)
    assert sum(shares.values()) == pytest.approx(1.0)
    stream.batch(12000, shares, 1400)
    state = stream.state()
    expected = [ids.tolist() for ids, _ in stream.batch(3000, shares, 1400)]
    other = Stream(tokenizer, 8)
    other.restore(state)
    assert [ids.tolist() for ids, _ in other.batch(3000, shares, 1400)] == expected
    _, _, given = stream.state()
    for name, share in shares.items():
        assert given[name] / sum(given.values()) == pytest.approx(share, abs=0.12)
