"""Where an answer with a grammar may end, and what becomes of it in a wall; all masks of a step at once."""

import numpy as np
import pytest

from baleen.constraint import Constraint
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import Tokenizer
from tests.support.grammar_walk import allowed, new_mask
from tests.support.tiny_tokenizer import tiny_tokenizer
from workers.engine.bitmasks import TOGETHER, Bitmasks

TINY = Tokenizer(tiny_tokenizer())
VOCAB = 512
(EOS,) = TINY.encode("<｜end▁of▁sentence｜>")
A, B, X = (TINY.encode(letter)[0] for letter in "abx")
GRAMMARS = Grammars(TINY, vocab_size=VOCAB, eos_token_ids=(EOS,))
A_THEN_B = Constraint(kind="regex", text="ab*")


def after(text="", constraint=A_THEN_B, **sampling):
    """What may come after a text."""
    mask = new_mask(GRAMMARS, constraint, **sampling)
    for token in TINY.encode(text):
        mask.accept(token)
    return set(allowed(mask, VOCAB))


def test_an_answer_ends_where_its_grammar_may_and_nowhere_else():
    assert after() == {A}
    assert after("a") == {B, EOS}
    stops = frozenset({X, B})
    assert after("", stop_token_ids=stops) == {A}
    assert after("a", stop_token_ids=stops) == {B, X, EOS}


def test_a_stop_token_is_no_text_of_the_answer():
    assert after("", Constraint(kind="regex", text="b*a"), stop_token_ids=frozenset({B})) == {A}


def test_min_tokens_wait_for_the_end_only_where_something_else_can_come():
    assert after("a", min_tokens=2) == {B}
    assert after("ab", min_tokens=2) == {B, EOS}
    must_end = Constraint(kind="regex", text="a")
    assert after("a", must_end, min_tokens=50) == {EOS}


def test_ignore_eos_goes_on_until_the_grammar_must_end():
    assert after("ab", ignore_eos=True) == {B}
    assert after("ab", ignore_eos=True, stop_token_ids=frozenset({X})) == {B, X}
    assert after("a", Constraint(kind="regex", text="a"), ignore_eos=True) == {EOS}


def test_a_wall_allows_nothing_and_says_why():
    mask = new_mask(GRAMMARS, A_THEN_B)
    mask.accept(X)
    assert allowed(mask, VOCAB) == [] and "satisfy the grammar" in mask.problem
    mask.accept(A)
    assert allowed(mask, VOCAB) == []


class Everything:
    """A mask that is no grammar."""

    problem = ""
    binds = True

    def fill(self, bitmask):
        assert not bitmask.any()
        bitmask[:] = -1

    def accept(self, token_id):
        raise AssertionError("the scheduler's business")


@pytest.mark.parametrize("number", [1, TOGETHER - 1, TOGETHER, 40])
def test_masks_are_the_same_together_as_alone(number):
    texts = ["", "a", "ab", "abb"]
    bitmasks = Bitmasks(VOCAB)
    for _ in range(2):
        masks = [new_mask(GRAMMARS, A_THEN_B, min_tokens=place % 3) for place in range(number)]
        for place, mask in enumerate(masks):
            for token in TINY.encode(texts[place % 4]):
                mask.accept(token)
        filled = bitmasks.fill([*masks, Everything()])
        assert filled.shape == (number + 1, VOCAB // 32) and filled.dtype == np.int32 and (filled[-1] == -1).all()
        for place, row in enumerate(filled[:-1]):
            ids = set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())
            assert ids == after(texts[place % 4], min_tokens=place % 3)
