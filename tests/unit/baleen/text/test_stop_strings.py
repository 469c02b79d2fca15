"""Stop strings against a search of the whole text, for every cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.text.stop_strings import StopMatcher, StopStrings

# A small alphabet makes overlaps, shared beginnings and stops inside stops common.
TEXTS = st.text("ab\n", max_size=14)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def first_match(text, stops):
    """By definition: complete first, then longest."""
    found = [(end, -len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    if not found:
        return text, None
    end, _, stop = min(found)
    return text[: end - len(stop)], stop


def run(pieces, stops):
    """Text that went out after each piece, the match, and what was left to flush."""
    matcher = StopMatcher(StopStrings(stops))
    out = []
    for piece in pieces:
        text, match = matcher.feed(piece)
        out.append(text)
        if match is not None:
            return out, match, matcher.finish()
    return out, None, matcher.finish()


@settings(max_examples=500)
@given(text=TEXTS, stops=STOPS, data=st.data())
def test_any_cut_gives_what_a_search_of_the_whole_text_gives(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, match, rest = run(pieces, stops)
    assert ("".join(out) + rest, match) == first_match(text, stops)


@given(text=st.text(max_size=20), stops=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3))
def test_any_characters(text, stops):
    out, match, rest = run(text, stops)
    assert ("".join(out) + rest, match) == first_match(text, stops)


@settings(max_examples=300)
@given(text=TEXTS, stops=STOPS)
def test_exactly_what_may_begin_a_match_is_held_back(text, stops):
    out, match, _ = run(text, stops)
    for num_fed in range(1, len(out) + (match is None)):
        known = text[:num_fed]
        begins = [size for stop in stops for size in range(len(stop)) if known.endswith(stop[:size])]
        assert "".join(out[:num_fed]) == known[: len(known) - max(begins)]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], ("one ", "STOP")),
        ("abcd", ["abcd", "bc"], ("a", "bc")),
        ("xabc", ["c", "bc", "abc"], ("x", "abc")),
        ("aab", ["ab"], ("a", "ab")),
        ("STO", ["STOP"], ("STO", None)),
        ("STOP", ["STOP"], ("", "STOP")),
        ("日本🐳語", ["🐳"], ("日本", "🐳")),
        ("", ["a"], ("", None)),
    ],
)
def test_examples_one_character_at_a_time_and_all_at_once(text, stops, expected):
    for pieces in (text, [text]):
        out, match, rest = run(pieces, stops)
        assert ("".join(out) + rest, match) == expected


def test_nothing_is_held_without_stop_strings():
    assert run(["abc", "", "d"], []) == (["abc", "", "d"], None, "")


def test_matchers_share_stop_strings_but_no_state():
    stops = StopStrings(["ab"])
    one, other = StopMatcher(stops), StopMatcher(stops)
    assert one.feed("a") == ("", None)
    assert other.feed("b") == ("b", None)
    assert one.feed("b") == ("", "ab")
