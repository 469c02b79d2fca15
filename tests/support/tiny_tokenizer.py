"""A byte-level BPE tokenizer of a few hundred tokens, made in memory with the real library."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BAR = "\uff5c"
"""The full-width bar of DeepSeek's special tokens."""

SPECIAL = [f"<{BAR}end▁of▁sentence{BAR}>", f"{BAR}DSML{BAR}"]
ADDED = ["<think>", "</think>"]

_TEXTS = ["the then thing", "größe", "日本語", "🐳🐋", "你好", "\n\n", "STOP", "Ελλάδα", "é", "�"]


@cache
def tiny_tokenizer() -> Tokenizer:
    """All 256 bytes, merges that end inside characters, whole characters and words, special and added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: token_id for token_id, char in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in _TEXTS:
        symbols = list("".join(piece for piece, _ in spelled.pre_tokenize_str(text)))
        while len(symbols) > 1:
            # Pairs from the left, round by round, so that many tokens end between two bytes of one character.
            for left, right in list(pairwise(symbols))[::2]:
                if left + right not in vocab:
                    vocab[left + right] = len(vocab)
                    merges.append((left, right))
            symbols = [a + b for a, b in zip(symbols[::2], [*symbols[1::2], ""], strict=False)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    return tokenizer
