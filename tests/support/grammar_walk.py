"""Answers that a constraint allows, drawn at random: a model that knows nothing, kept to a form."""

from __future__ import annotations

from random import Random

import numpy as np

from baleen.constraint import Constraint
from baleen.sampling import SamplingParams
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import Tokenizer
from workers.engine.grammar_mask import GrammarMask


def new_mask(grammars: Grammars, constraint: Constraint, **sampling: object) -> GrammarMask:
    """The mask of a request with this constraint."""
    params = SamplingParams(constraint=constraint, **{"max_tokens": 10_000, **sampling})  # type: ignore[arg-type]
    return GrammarMask(grammars.matcher(constraint), grammars, params)


def allowed(mask: GrammarMask, vocab_size: int) -> list[int]:
    """Ids that the mask lets come next."""
    bitmask = np.zeros(-(-vocab_size // 32), dtype=np.int32)
    mask.fill(bitmask)
    ids: list[int] = np.flatnonzero(np.unpackbits(bitmask.view(np.uint8), bitorder="little")).tolist()
    assert all(token_id < vocab_size for token_id in ids)
    return ids


def walk(
    grammars: Grammars, constraint: Constraint, tokenizer: Tokenizer, *, vocab_size: int, seed: int, most: int = 3000
) -> str | None:
    """The text of a whole answer; None if it did not end within `most` tokens.

    Where the answer may end it does so half the time. Quotes, brackets and added tokens are preferred: it gets on.
    """
    random, mask = Random(seed), new_mask(grammars, constraint)
    eos = grammars.eos_token_ids[0]
    ends = {*(token for text in '"]}</>' for token in tokenizer.encode(text)), *tokenizer.added_tokens}
    answer: list[int] = []
    while len(answer) < most:
        ids = allowed(mask, vocab_size)
        assert ids, f"a wall after {tokenizer.decode(answer)!r}: {mask.problem}"
        preferred = [*ends.intersection(ids)] if random.random() < 0.4 else []
        token = eos if eos in ids and random.random() < 0.5 else random.choice(sorted(preferred) or ids)
        if token == eos:
            return tokenizer.decode(answer)
        answer.append(token)
        mask.accept(token)
    return None
