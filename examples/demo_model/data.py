"""The mixture of all families, and samples as token ids with the weight of each token in the loss."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from baleen.text.encoding_v32 import encode_pieces
from baleen.text.tokenizer_files import BOS_TOKEN, EOS_TOKEN
from examples.demo_model.arithmetic import arithmetic, sums
from examples.demo_model.reading import fill_in_the_middle, json_by_schema, lookup, recall, repeat
from examples.demo_model.sample import Family, Sample
from examples.demo_model.talk import talk
from examples.demo_model.tools import single_call, tool_choice, tool_use

FAMILIES: Mapping[str, Family] = {
    "talk": talk,
    "arithmetic": arithmetic,
    "sums": sums,
    "tools": tool_use,
    "choice": tool_choice,
    "single": single_call,
    "json": json_by_schema,
    "recall": recall,
    "repeat": repeat,
    "lookup": lookup,
    "fim": fill_in_the_middle,
}
MIXTURES: tuple[tuple[float, int, Mapping[str, float]], ...] = (
    # copying is learnt in little time where little else is learnt, and hardly in a full mixture
    (0.4, 320, {"repeat": 0.5, "lookup": 0.25, "arithmetic": 0.15, "json": 0.1}),
    # then much is to be found in long prompts
    (
        1.797,
        1400,
        {
            "talk": 0.12,
            "arithmetic": 0.28,
            "tools": 0.22,
            "json": 0.2,
            "recall": 0.12,
            "repeat": 0.02,
            "lookup": 0.02,
            "fim": 0.02,
        },
    ),
    # then which tool a request needs
    (
        4.301,
        1400,
        {
            "talk": 0.12,
            "arithmetic": 0.25,
            "tools": 0.3,
            "choice": 0.06,
            "json": 0.18,
            "recall": 0.06,
            "fim": 0.03,
        },
    ),
    (
        7.421,
        1400,
        {
            "talk": 0.08,
            "arithmetic": 0.06,
            "sums": 0.2,
            "tools": 0.28,
            "choice": 0.02,
            "json": 0.24,
            "recall": 0.1,
            "fim": 0.02,
        },
    ),
    # and more of what is right least often
    (
        9.8,
        1400,
        {
            "talk": 0.08,
            "sums": 0.12,
            "tools": 0.24,
            "json": 0.28,
            "recall": 0.26,
            "fim": 0.02,
        },
    ),
    (
        10.299,
        1400,
        {
            "talk": 0.08,
            "sums": 0.06,
            "tools": 0.6,
            "json": 0.12,
            "recall": 0.12,
            "fim": 0.02,
        },
    ),
    (
        math.inf,
        1400,
        {
            "talk": 0.06,
            "sums": 0.04,
            "tools": 0.2,
            "single": 0.45,
            "json": 0.12,
            "recall": 0.12,
            "fim": 0.01,
        },
    ),
)
"""Up to so many millions of tokens: the longest sample, and the share of tokens that each family gets."""


def mixture(millions: float) -> tuple[int, Mapping[str, float]]:
    """What the training learns from after so many tokens."""
    return next((longest, shares) for end, longest, shares in MIXTURES if millions < end)


PROMPT_WEIGHT = 0.05
"""Weight in the loss of a token that the model only reads."""

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


def sample_pieces(sample: Sample) -> list[tuple[str, bool]]:
    """The text of a sample in pieces, and whether the model learns to write each."""
    if sample.text is not None:
        prompt, completion = sample.text
        return [(BOS_TOKEN + prompt, False), (completion + EOS_TOKEN, True)]
    texts = encode_pieces(sample.messages, thinking=sample.thinking)
    learnt = [message.role == "assistant" and i >= sample.learn_from for i, message in enumerate(sample.messages)]
    return [(BOS_TOKEN, False), *zip(texts, learnt, strict=True)]


def tokenise(sample: Sample, tokenizer: Tokenizer) -> tuple[Ids, Weights]:
    """Token ids and loss weights [T]; a weight belongs to the token that is predicted.

    Pieces that the model writes begin after a special string and end with one, so they may be tokenised alone.
    """
    ids: list[int] = []
    weights: list[float] = []
    waiting = ""
    for text, learnt in [*sample_pieces(sample), ("", True)]:
        if not learnt:
            waiting += text
            continue
        for part, weight in ((waiting, PROMPT_WEIGHT), (text, 1.0)):
            part_ids = tokenizer.encode(part, add_special_tokens=False).ids
            ids += part_ids
            weights += [weight] * len(part_ids)
        waiting = ""
    return np.array(ids), np.array(weights, dtype=np.float32)


class Stream:
    """Training samples without end, the same for the same seed: the family furthest behind its share comes next."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._shares: dict[str, float] = {}
        self._given: dict[str, float] = {}

    def batch(self, num_tokens: int, shares: Mapping[str, float], max_length: int) -> list[tuple[Ids, Weights]]:
        """Samples of at most `max_length` tokens each, of at least `num_tokens` together."""
        if self._shares != shares:
            self._shares, self._given = dict(shares), dict.fromkeys(shares, 1.0)
        documents, total = [], 0
        while total < num_tokens:
            name = min(shares, key=lambda family: self._given[family] / shares[family])
            ids, weights = tokenise(FAMILIES[name](self._rng, False), self._tokenizer)
            if len(ids) <= max_length:
                self._given[name] += len(ids)
                documents.append((ids, self._thin(weights)))
                total += len(ids)
        return documents

    def _thin(self, weights: Weights) -> Weights:
        """Learn from one prompt token in five, with five times its weight: most of the head's work is saved."""
        kept = np.array([self._rng.random() < 0.2 for _ in weights])
        return np.where(weights == 1.0, weights, np.where(kept, weights * 5, 0)).astype(np.float32)

    def state(self) -> object:
        """What `restore` goes on from."""
        return self._rng.getstate(), self._shares, dict(self._given)

    def restore(self, state: Any) -> None:
        """Go on from a `state`."""
        rng, self._shares, given = state
        self._rng.setstate(rng)
        self._given = dict(given)
