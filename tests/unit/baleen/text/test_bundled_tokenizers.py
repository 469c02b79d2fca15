"""The bundled tokenizers: every text and every token stream survives."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baleen
from baleen.text.detokenizer import Detokenizer
from baleen.text.tokenizer import load_tokenizer

BUNDLED = sorted((Path(baleen.__file__).parent / "data").glob("*.tokenizer.json"))


@pytest.fixture(scope="module", params=BUNDLED, ids=lambda path: path.name)
def bundled(request, tmp_path_factory):
    """The tokenizer, and the special strings that its file names."""
    directory = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(request.param, directory / "tokenizer.json")
    added = json.loads(request.param.read_text(encoding="utf-8"))["added_tokens"]
    return load_tokenizer(directory), [token["content"] for token in added]


def stream(tokenizer, token_ids):
    detokenizer = Detokenizer(tokenizer)
    return "".join([detokenizer.feed(token_id) for token_id in token_ids]) + detokenizer.finish()


def test_there_are_some():
    assert BUNDLED


@settings(max_examples=100)
@given(data=st.data())
def test_text_and_special_strings_survive(bundled, data):
    tokenizer, special = bundled
    text = "".join(data.draw(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(special)), max_size=8)))
    assert stream(tokenizer, tokenizer.encode(text)) == text


@settings(max_examples=100)
@given(data=st.data())
def test_any_tokens_stream_as_they_decode(bundled, data):
    tokenizer, _ = bundled
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert stream(tokenizer, token_ids) == tokenizer.decode(token_ids)
