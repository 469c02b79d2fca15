"""A budget of tokens: its text comes once it is spent, within a constraint too, and after no cut character."""

import numpy as np
import pytest

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import Tokenizer
from tests.support.grammar_walk import allowed, new_mask
from tests.support.tiny_tokenizer import tiny_tokenizer
from workers.engine.budget_mask import BudgetMask
from workers.engine.submission import expand_submission

TINY = Tokenizer(tiny_tokenizer())
VOCAB = 512
(EOS,) = TINY.encode("<｜end▁of▁sentence｜>")
END = "</think>"
END_IDS = TINY.encode(END)
ALL = set(range(VOCAB))
GRAMMARS = Grammars(TINY, vocab_size=VOCAB, eos_token_ids=(EOS,))


def after(ids, *, tokens=3, end=END, unless="", other=None):
    mask = BudgetMask(Budget(tokens=tokens, end=end, unless=unless), TINY, other)
    for token_id in ids:
        mask.accept(token_id)
    return mask


def next_of(mask):
    return set(allowed(mask, VOCAB))


def bytes_of(text):
    """A token for each byte."""
    one = {TINY.token_bytes(token_id): token_id for token_id in range(TINY.vocab_size)}
    return [one[bytes([byte])] for byte in text.encode()]


def test_the_text_comes_when_the_budget_is_spent_and_nothing_is_asked_of_what_follows():
    thought = bytes_of("abc")
    assert not after(thought[:2]).binds and next_of(after(thought[:2])) == ALL
    for place, token_id in enumerate(END_IDS):
        mask = after([*thought, *END_IDS[:place]])
        assert mask.binds and next_of(mask) == {token_id}
    assert not after([*thought, *END_IDS]).binds
    assert not after([*thought, *END_IDS, *thought, *thought]).binds


def test_without_a_budget_the_text_comes_at_once():
    assert next_of(after([], tokens=0)) == {END_IDS[0]}


@pytest.mark.parametrize("spelled", [END_IDS, bytes_of(END)], ids=["token", "bytes"])
def test_what_came_by_itself_does_not_come_again(spelled):
    assert not after([*bytes_of("a"), *spelled, *bytes_of("bcdefgh")], tokens=20).binds


@pytest.mark.parametrize("tag", ["<call>", "a tag that is longer than the text"])
def test_what_ends_it_too_is_heeded_before_the_budget_is_spent_and_not_after(tag):
    written = [*bytes_of("x" + tag), *bytes_of("abc")]
    assert not after(written, tokens=len(tag) + 1, unless=tag).binds
    assert after(written[: len(tag)], tokens=len(tag), unless=tag).binds


def test_of_several_tokens_one_follows_the_other():
    end = "xyz"
    ids, thought = TINY.encode(end), bytes_of("abc")
    assert len(ids) > 1
    for place, token_id in enumerate(ids):
        assert next_of(after([*thought, *ids[:place]], end=end)) == {token_id}
    assert not after([*thought, *ids], end=end).binds


@pytest.mark.parametrize("char", ["é", "日", "🐳"])
def test_a_character_is_finished_first(char):
    whole = bytes_of(char)
    for length in range(1, len(whole)):
        assert not after(whole[:length], tokens=length).binds
    assert after(whole, tokens=1).binds


def test_a_character_that_is_never_finished_does_not_hold_it_back():
    lead = bytes_of("🐳")[:1]
    assert not after(lead * 5, tokens=3).binds and next_of(after(lead * 6, tokens=3)) == {END_IDS[0]}


def test_within_a_constraint_the_text_comes_where_it_may():
    form = Constraint(kind="regex", text="[0-9]x", after=END)
    digits = set(bytes_of("0123456789"))
    free = next_of(after(bytes_of("ab"), other=new_mask(GRAMMARS, form)))
    assert END_IDS[0] in free and len(free) > 100
    assert next_of(after(bytes_of("abc"), other=new_mask(GRAMMARS, form))) == {END_IDS[0]}
    assert next_of(after([*bytes_of("abc"), *END_IDS], other=new_mask(GRAMMARS, form))) == digits
    cut = next_of(after(bytes_of("🐳")[:3], other=new_mask(GRAMMARS, form)))
    assert cut and END_IDS[0] not in cut
    assert next_of(after(bytes_of("🐳"), other=new_mask(GRAMMARS, form))) == {END_IDS[0]}


def test_a_budget_alone_leaves_the_ends_of_an_answer_as_they_are():
    def expanded(**sampling):
        params = SamplingParams(budget=Budget(tokens=1, end=END), **sampling)
        (request,) = expand_submission(
            RequestId("r"), [5], params, vocab_size=VOCAB, eos_token_ids=(EOS,), token_masks=[after([])]
        )
        return request

    assert expanded().stop_ids == {EOS} and expanded(ignore_eos=True).stop_ids == set()


def test_a_budget_without_a_tokenizer_is_refused():
    params = SamplingParams(budget=Budget(tokens=1, end=END))
    with pytest.raises(InvalidRequest, match="budget needs a tokenizer") as caught:
        expand_submission(RequestId("r"), [5], params, vocab_size=VOCAB, eos_token_ids=(EOS,))
    assert caught.value.field == "budget"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"tokens": -1}, "budget.tokens"),
        ({"tokens": 2**31}, "budget.tokens"),
        ({"tokens": True}, "budget.tokens"),
        ({"end": ""}, "budget.end"),
        ({"end": "x" * 65}, "budget.end"),
        ({"end": "\ud800"}, "budget.end"),
        ({"unless": "x" * 65}, "budget.unless"),
        ({"unless": "\ud800"}, "budget.unless"),
    ],
)
def test_bad_budgets_are_refused(values, field):
    with pytest.raises(InvalidRequest) as caught:
        Budget(**{"tokens": 5, "end": END, **values})
    assert caught.value.field == field


def test_masks_are_packed_bits():
    bitmask = np.zeros(VOCAB // 32, dtype=np.int32)
    after(bytes_of("abc")).fill(bitmask)
    word = END_IDS[0] // 32
    assert bitmask.view(np.uint32)[word] == 1 << END_IDS[0] % 32
