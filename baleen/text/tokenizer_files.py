"""The tokenizers that ship with baleen, for made checkpoints: where they are, and the files they become."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

BundledTokenizer = Literal["bytes", "text"]

TOKENIZER_FILE = "tokenizer.json"
BOS_TOKEN = "<｜begin▁of▁sentence｜>"
EOS_TOKEN = "<｜end▁of▁sentence｜>"


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Contents of tokenizer.json and tokenizer_config.json. num_ids: ids run from 0 to num_ids - 1."""

    tokenizer_json: str
    tokenizer_config_json: str
    num_ids: int


def tokenizer_files(name: BundledTokenizer, *, max_length: int) -> TokenizerFiles:
    """The bundled tokenizer `name`, for a model of `max_length` positions.

    `bytes`: one id per byte, 3 + its value. `text`: about 2,000 pieces of English. Both have DeepSeek-V3.2's special
    strings, ids 0 (begin), 1 (end) and 2 (padding), and no beginning added by themselves.
    """
    text = (files("baleen") / "data" / f"{name}.tokenizer.json").read_text(encoding="utf-8")
    return files_of_tokenizer(text, name=name, max_length=max_length)


def files_of_tokenizer(text: str, *, name: str, max_length: int) -> TokenizerFiles:
    """The files for the content of a tokenizer.json that has the two strings above; `name` is for errors."""
    raw = json.loads(text)
    ids = {*raw["model"]["vocab"].values(), *(token["id"] for token in raw["added_tokens"])}
    assert ids == set(range(len(ids))), f"ids of the tokenizer {name} have gaps"
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS_TOKEN,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS_TOKEN,
        "model_max_length": max_length,
        "pad_token": EOS_TOKEN,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    return TokenizerFiles(text, json.dumps(config, indent=2, ensure_ascii=False) + "\n", len(ids))
