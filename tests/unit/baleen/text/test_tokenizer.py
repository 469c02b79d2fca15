"""The tokenizer against the library it wraps, and files that it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from baleen.errors import CheckpointError, InvalidRequest
from baleen.text.tokenizer import Tokenizer, load_tokenizer
from tests.support.tiny_tokenizer import ADDED, SPECIAL, tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30)


@given(text=st.text(max_size=60))
def test_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(token_ids=IDS)
def test_decodes_as_the_library_does(token_ids):
    assert TOKENIZER.decode(token_ids) == tiny_tokenizer().decode(token_ids, skip_special_tokens=False)


@given(text=st.text(max_size=60))
def test_encodes_as_the_library_does(text):
    assert TOKENIZER.encode(text) == tiny_tokenizer().encode(text, add_special_tokens=False).ids


def test_special_tokens_are_text_in_both_directions():
    for text in SPECIAL + ADDED:
        assert len(TOKENIZER.encode(text)) == 1
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    text = f"a<{SPECIAL[1]}invoke>\n</think>é"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_every_byte_has_a_token():
    assert {TOKENIZER.token_bytes(token_id) for token_id in range(256)} == {bytes([byte]) for byte in range(256)}


def test_an_id_without_a_token_is_no_text():
    beyond = TOKENIZER.vocab_size
    assert TOKENIZER.token_bytes(beyond) == b""
    assert TOKENIZER.decode([*TOKENIZER.encode("a"), beyond, *TOKENIZER.encode("b")]) == "ab"


def test_an_added_token_of_latin_letters_is_its_text():
    """In a byte-level vocabulary é stands for byte 0xE9, but an added token is spelled as it is."""
    backend = Backend.from_str(tiny_tokenizer().to_str())
    backend.add_tokens(["é!"])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode([backend.token_to_id("é!")]) == "é!"


def test_a_token_that_is_not_spelled_in_bytes_is_its_text():
    backend = Backend(models.BPE(vocab={"日": 0, "a": 1}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    assert Tokenizer(backend).decode([0, 1]) == backend.decode([0, 1]) == "日a"


def test_nothing_is_put_around_a_text():
    backend = Backend.from_str(tiny_tokenizer().to_str())
    backend.post_processor = processors.TemplateProcessing(single=f"{ADDED[0]} $0", special_tokens=[(ADDED[0], 7)])
    assert backend.encode("a").ids == [7, *TOKENIZER.encode("a")]
    assert Tokenizer(backend).encode("a") == TOKENIZER.encode("a")


def test_half_a_surrogate_pair_is_the_user_s_mistake():
    with pytest.raises(InvalidRequest, match=r"U\+D83D at 2"):
        TOKENIZER.encode("ab\ud83d")


def test_loads_from_a_checkpoint_directory(tmp_path):
    assert load_tokenizer(tmp_path) is None
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("the größe<think>") == TOKENIZER.encode("the größe<think>")


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path):
    backend = Backend.from_str(tiny_tokenizer().to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("zzzzzz") == TOKENIZER.encode("zzzzzz")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"', json.dumps([1]).encode()])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("decoder", "name"), [(None, "none"), (decoders.Metaspace(), "Metaspace")])
def test_another_kind_of_tokenizer_is_refused(tmp_path, decoder, name):
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=f"decoder is {name}, must be ByteLevel"):
        load_tokenizer(tmp_path)
