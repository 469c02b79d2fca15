"""Streamed text against the whole, for every cut into tokens and for broken bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.text.detokenizer import Detokenizer
from baleen.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import SPECIAL, tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
BYTE_TOKEN = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(256)}

TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé日🐳\n�\x00")), min_size=0, max_size=40
)


def stream(token_ids):
    detokenizer = Detokenizer(TOKENIZER)
    return [detokenizer.feed(token_id) for token_id in token_ids], detokenizer.finish()


def byte_tokens(data):
    return [BYTE_TOKEN[bytes([byte])] for byte in data]


@settings(max_examples=400)
@given(token_ids=st.lists(st.integers(0, TOKENIZER.vocab_size + 3), max_size=40))
def test_pieces_make_up_the_whole_for_any_tokens(token_ids):
    pieces, rest = stream(token_ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(token_ids)


@settings(max_examples=400)
@given(data=st.lists(st.sampled_from([*b"\x41\x80\xbf\xc3\xa9\xe0\xe6\xed\xf0\x9f\x90\xf4\xff\xc0"]), max_size=12))
def test_pieces_make_up_the_whole_for_broken_bytes(data):
    pieces, rest = stream(byte_tokens(data))
    assert "".join(pieces) + rest == bytes(data).decode("utf-8", errors="replace")


@given(text=TEXTS)
def test_each_character_comes_whole_with_its_last_byte(text):
    pieces, rest = stream(byte_tokens(text.encode()))
    expected = [piece for char in text for piece in [""] * (len(char.encode()) - 1) + [char]]
    assert pieces == expected and rest == ""


@given(text=TEXTS, data=st.data())
def test_every_cut_of_a_text_into_tokens(text, data):
    """The same bytes as tokens of any lengths: those of the vocabulary that fit, in any choice."""
    encoded, token_ids = text.encode(), []
    longer = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(TOKENIZER.vocab_size)}
    place = 0
    while place < len(encoded):
        fits = [end for end in range(place + 1, min(place + 12, len(encoded)) + 1) if encoded[place:end] in longer]
        end = data.draw(st.sampled_from(fits))
        token_ids.append(longer[encoded[place:end]])
        place = end
    pieces, rest = stream(token_ids)
    assert "".join(pieces) == text and rest == ""
    for piece, so_far in zip(pieces, range(1, len(token_ids) + 1), strict=True):
        assert text.startswith("".join(pieces[:so_far]))
        assert "�" not in piece or "�" in text


def test_special_tokens_keep_their_text():
    texts = ["a<", *SPECIAL, "b"]
    token_ids = [token_id for text in texts for token_id in TOKENIZER.encode(text)]
    assert "".join(stream(token_ids)[0]) == "".join(texts)


@pytest.mark.parametrize("text", ["é", "日", "🐳"])
def test_a_character_cut_off_by_a_special_token_or_the_end(text):
    begun = byte_tokens(text.encode()[:-1])
    assert stream(begun) == ([""] * len(begun), "�")
    assert stream([*begun, *TOKENIZER.encode("<think>")]) == ([""] * len(begun) + ["�<think>"], "")
