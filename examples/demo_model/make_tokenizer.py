"""Trains the demo model's tokenizer: `python -m examples.demo_model.make_tokenizer FILE`.

Byte-level BPE on generated samples and on docstrings of the standard library, with DeepSeek-V3.2's special strings;
each digit is a piece of its own, so that numbers are copied and worked digit by digit.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.demo_model.data import FAMILIES, sample_pieces
from examples.train_tokenizers import FIRST, LAST, byte_symbols, docstrings

NUM_IDS = 4096


def assemble(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of these pieces, between the first and the other special strings."""
    vocabulary = {piece: number for number, piece in enumerate([*FIRST, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in FIRST])
    for text, special in LAST:
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
    return tokenizer


def corpus() -> Iterator[str]:
    """Generated samples of all families, and a few docstrings for the rest of English."""
    rng = random.Random(1)
    special = re.compile("|".join(re.escape(text) for text in (*FIRST, *(text for text, _ in LAST))))
    for _ in range(2500):
        for family in FAMILIES.values():
            yield from special.split("".join(text for text, _ in sample_pieces(family(rng, False))))
    yield from docstrings()


def main() -> int:
    """Write the tokenizer file."""
    symbols = byte_symbols()
    learner = assemble(symbols, [])
    size = NUM_IDS - len(FIRST) - len(LAST)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=symbols, show_progress=False, min_frequency=2)
    learner.train_from_iterator(corpus(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = assemble([*symbols, *("".join(pair) for pair in merges)], merges)
    Path(sys.argv[1]).write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    sys.stdout.write(f"{sys.argv[1]}: {tokenizer.get_vocab_size()} ids\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
