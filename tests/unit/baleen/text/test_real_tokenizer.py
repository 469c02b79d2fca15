"""DeepSeek-V3.2's own tokenizer: its ids, its special strings, and outputs taken apart token by token."""

from pathlib import Path
from random import Random

import pytest

from baleen.text.completion import CompletionText
from baleen.text.detokenizer import Detokenizer
from baleen.text.output_events import message_of
from baleen.text.output_parser import OutputParser
from tests.support.model_outputs import right_output, wrong_output
from tests.support.real_tokenizer import real_tokenizer

VECTORS = Path(__file__).parents[3] / "data" / "encoding_v32"
DSML_ID = 128793
MOST_TOKEN_BYTES = 16

pytestmark = pytest.mark.slow  # loading takes a second or two


@pytest.fixture(scope="module")
def token_of():
    """Ids by the bytes that they stand for, for tokens that are not long."""
    tokenizer = real_tokenizer()
    ids = ((tokenizer.token_bytes(token_id), token_id) for token_id in range(tokenizer.vocab_size))
    return {data: token_id for data, token_id in ids if 0 < len(data) <= MOST_TOKEN_BYTES}


def pieces_of(token_ids):
    detokenizer = Detokenizer(real_tokenizer())
    return [detokenizer.feed(token_id) for token_id in token_ids] + [detokenizer.finish()]


def parse(pieces, *, thinking):
    parser = OutputParser(thinking=thinking, tools=True)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return message_of(events + parser.finish()), parser.problem


def any_tokens(data, token_of, random):
    """The bytes as tokens of the vocabulary, cut where it falls."""
    place, token_ids = 0, []
    while place < len(data):
        ends = [end for end in range(place + 1, place + MOST_TOKEN_BYTES + 1) if data[place:end] in token_of]
        end = min(random.choice(ends), len(data))
        token_ids.append(token_of[data[place:end]])
        place = end
    return token_ids


def all_tokens(data, token_of):
    """Every way to spell the bytes in tokens of the vocabulary."""
    if not data:
        yield []
    for end in range(1, min(len(data), MOST_TOKEN_BYTES) + 1):
        if (first := token_of.get(data[:end])) is not None:
            for rest in all_tokens(data[end:], token_of):
                yield [first, *rest]


def test_ids_of_the_model_card_and_of_the_format():
    tokenizer = real_tokenizer()
    assert tokenizer.vocab_size == 128815
    text = (
        "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜></think>Hello! I am DeepSeek.<｜end▁of▁sentence｜>"
        "<｜User｜>1+1=?<｜Assistant｜><think>"
    )
    ids = [0, 128803, 33310, 128804, 128799, 19923, 3, 342, 1030, 22651, 4374, 1465, 16, 1]
    assert tokenizer.encode(text) == [*ids, 128803, 19, 13, 19, 127252, 128804, 128798]
    block = "\n\n<｜DSML｜function_calls>\n"
    assert tokenizer.encode(block) == [271, 30, DSML_ID, 8701, 4941, 12548, 1018]
    assert "".join(pieces_of(tokenizer.encode(block))) == block


@pytest.mark.parametrize(("name", "num_tokens"), [("", 1272), ("_search_wo_date", 19718), ("_search_w_date", 44164)])
def test_official_prompts_have_the_official_number_of_tokens_and_come_back(name, num_tokens):
    text = (VECTORS / f"output{name}.txt").read_text(encoding="utf-8")
    text = text if name else text.removesuffix("\n")
    token_ids = real_tokenizer().encode(text)
    assert len(token_ids) == num_tokens
    assert "".join(pieces_of(token_ids)) == real_tokenizer().decode(token_ids) == text


def test_any_ids_give_what_all_their_bytes_give():
    random = Random(0)
    for _ in range(500):
        ids = [random.randrange(129_280) for _ in range(random.randint(1, 40))]
        assert "".join(pieces_of(ids)) == real_tokenizer().decode(ids)
        completion = CompletionText(real_tokenizer())
        assert completion.feed(ids).text + completion.finish().text == real_tokenizer().decode(ids)


@pytest.mark.parametrize("make", [right_output, wrong_output])
def test_outputs_in_the_models_tokens_and_in_any_others_are_parsed_as_the_whole_text(make, token_of):
    for seed in range(1000):
        random = Random(seed)
        thinking = random.random() < 0.5
        text = make(random, thinking=thinking)
        whole = parse([text], thinking=thinking)
        for token_ids in (real_tokenizer().encode(text), any_tokens(text.encode(), token_of, random)):
            pieces = pieces_of(token_ids)
            assert "".join(pieces) == text
            assert parse(pieces, thinking=thinking) == whole, (seed, token_ids)


@pytest.mark.parametrize("text", ["é</think>a", "r\n\n<｜DSML｜f", "🐳\n\n</ "])
def test_every_spelling_of_short_outputs_in_tokens(text, token_of):
    whole = parse([text], thinking=True)
    count = 0
    for token_ids in all_tokens(text.encode(), token_of):
        count += 1
        assert parse(pieces_of(token_ids), thinking=True) == whole, token_ids
    assert count >= 12
