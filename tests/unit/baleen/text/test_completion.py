"""Text and stop of a completion against the definition, for every grouping of tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.text.completion import CompletionText, StopHit, TextDelta
from baleen.text.detokenizer import Detokenizer
from baleen.text.stop_strings import StopStrings
from baleen.text.tokenizer import Tokenizer
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())
TOKENS = st.lists(
    st.one_of(
        st.sampled_from([token for text in ["a", "b", "\n", "é", "日"] for token in TOKENIZER.encode(text)]),
        st.sampled_from([token for token in range(256) if TOKENIZER.token_bytes(token) in (b"\xc3", b"\xa9", b"\xe6")]),
        st.integers(0, TOKENIZER.vocab_size - 1),
    ),
    max_size=12,
)
STOPS = st.lists(st.text("ab\né日�", min_size=1, max_size=3), max_size=3)


def naive(token_ids, stops, min_tokens):
    """Text and hit from the texts of the tokens, searching the whole again after every token."""
    detokenizer = Detokenizer(TOKENIZER)
    texts = [detokenizer.feed(token_id) for token_id in token_ids]
    texts[-1:] = [texts[-1] + detokenizer.finish()] if texts else []
    early, late = "".join(texts[:min_tokens]), ""
    for num_tokens, text in enumerate(texts[min_tokens:], min_tokens + 1):
        for char in text:
            late += char
            matches = [stop for stop in stops if late.endswith(stop)]
            if matches:
                stop = max(matches, key=len)
                return early + late[: -len(stop)], StopHit(stop, num_tokens)
    return early + late, None


@pytest.mark.slow
@settings(max_examples=500)
@given(token_ids=TOKENS, stops=STOPS, min_tokens=st.integers(0, 6), data=st.data())
def test_any_grouping_of_tokens_gives_the_same_text_and_hit(token_ids, stops, min_tokens, data):
    completion = CompletionText(TOKENIZER, StopStrings(stops) if stops else None, min_tokens=min_tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=5)))
    groups = zip([0, *cuts], [*cuts, len(token_ids)], strict=True)
    deltas = [completion.feed(token_ids[start:end]) for start, end in groups]
    deltas.append(completion.finish())
    hits = [delta.hit for delta in deltas if delta.hit is not None]
    text, hit = naive(token_ids, stops, min_tokens)
    assert "".join(delta.text for delta in deltas) == text
    assert hits == ([] if hit is None else [hit])
    if hits:
        last = deltas.index(next(delta for delta in deltas if delta.hit))
        assert all(delta == TextDelta("") for delta in deltas[last + 1 :])


def tokens(text):
    return [token for char in text for token in TOKENIZER.encode(char)]


@pytest.mark.parametrize(
    ("min_tokens", "expected"),
    [
        (0, ("x", StopHit("ab", 3))),
        (1, ("x", StopHit("ab", 3))),
        # the match would begin in the second token, or end in it or before
        (2, ("xabb", StopHit("ab", 6))),
        (3, ("xabb", StopHit("ab", 6))),
        (4, ("xabb", StopHit("ab", 6))),
        (5, ("xabbab", None)),
    ],
)
def test_no_character_of_the_first_min_tokens_is_part_of_a_match(min_tokens, expected):
    completion = CompletionText(TOKENIZER, StopStrings(["ab"]), min_tokens=min_tokens)
    delta = completion.feed(tokens("xabbab"))
    assert (delta.text + completion.finish().text, delta.hit) == expected


def test_text_of_the_first_min_tokens_is_not_held_back():
    completion = CompletionText(TOKENIZER, StopStrings(["ab"]), min_tokens=1)
    assert completion.feed(tokens("a")) == TextDelta("a")
    assert completion.feed(tokens("a")) == TextDelta("")
    assert completion.finish() == TextDelta("a")


def test_tokens_after_the_hit_are_ignored():
    completion = CompletionText(TOKENIZER, StopStrings(["b"]))
    assert completion.feed(tokens("abcc")) == TextDelta("a", StopHit("b", 2))
    assert completion.feed(tokens("zz")) == TextDelta("")
    assert completion.finish() == TextDelta("")


def test_an_incomplete_character_may_complete_a_stop_string_at_the_end():
    completion = CompletionText(TOKENIZER, StopStrings(["a�"]))
    half = [token for token in range(256) if TOKENIZER.token_bytes(token) == b"\xc3"]
    assert completion.feed([*tokens("a"), *half]) == TextDelta("")
    assert completion.finish() == TextDelta("", StopHit("a�", 2))


def test_without_stop_strings_text_comes_at_once():
    completion = CompletionText(TOKENIZER)
    assert completion.feed(TOKENIZER.encode("the STO")) == TextDelta("the STO")
    assert completion.finish() == TextDelta("")
