"""The bundled tokenizers: ids, special strings, and text that survives."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baleen.text.tokenizer_files import tokenizer_files

BAR = chr(0xFF5C)
GAP = chr(0x2581)
BEGIN = f"<{BAR}begin{GAP}of{GAP}sentence{BAR}>"
END = f"<{BAR}end{GAP}of{GAP}sentence{BAR}>"
NAMED = ["<think>", "</think>", f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", f"{BAR}DSML{BAR}"]
NAMED += [f"<{BAR}{name}{BAR}>" for name in (f"fim{GAP}hole", f"search{GAP}begin", f"tool{GAP}call{GAP}begin")]
BOTH = {name: Tokenizer.from_str(tokenizer_files(name, max_length=99).tokenizer_json) for name in ("bytes", "text")}


@pytest.mark.parametrize(("name", "num_ids"), [("bytes", 281), ("text", 2048)])
def test_sizes(name, num_ids):
    assert tokenizer_files(name, max_length=99).num_ids == num_ids
    assert BOTH[name].get_vocab_size() == num_ids


@pytest.mark.parametrize("name", BOTH)
def test_special_strings_are_one_id_each(name):
    tokenizer = BOTH[name]
    assert [tokenizer.token_to_id(text) for text in (BEGIN, END, f"<{BAR}{GAP}pad{GAP}{BAR}>")] == [0, 1, 2]
    for text in NAMED:
        assert tokenizer.encode(f"a{text}b", add_special_tokens=False).tokens == ["a", text, "b"]


@pytest.mark.parametrize("name", BOTH)
def test_only_control_strings_vanish_when_special_tokens_are_skipped(name):
    tokenizer = BOTH[name]
    ids = tokenizer.encode(f"{BEGIN}<think>x</think>{BAR}DSML{BAR}y{END}").ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think>y"


@pytest.mark.parametrize("name", BOTH)
@given(text=st.text())
def test_text_survives_both_ways(name, text):
    tokenizer = BOTH[name]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_bytes_have_one_id_each():
    text = "".join(chr(code) for code in range(0x20, 0x7F)) + "ä中🎉"
    assert BOTH["bytes"].encode(text).ids == [3 + byte for byte in text.encode()]


def test_text_is_shorter_than_bytes():
    sentence = "The configuration of the server is read from a file when the process starts."
    assert len(BOTH["text"].encode(sentence).ids) < len(sentence) / 3


def test_config_adds_nothing_to_a_prompt():
    config = json.loads(tokenizer_files("bytes", max_length=77).tokenizer_config_json)
    assert config["model_max_length"] == 77
    assert (config["bos_token"], config["eos_token"]) == (BEGIN, END)
    assert not config["add_bos_token"]
    assert BOTH["bytes"].encode("").ids == []
