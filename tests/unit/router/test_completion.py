"""Completions at the router: text, stop strings, and tokens recognised by their position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.ids import RequestId
from baleen.reports import FinishReason, PromptLogprobs, RequestOutput, SampledToken
from baleen.sampling import SamplingParams
from baleen.text.tokenizer import Tokenizer
from router.completion import ClientCompletion, ClientPrompt, OutputGap, new_completions
from tests.support.tiny_tokenizer import tiny_tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer())


def output(position, ids, finish=None):
    tokens = tuple(SampledToken(token, -float(token)) for token in ids)
    return RequestOutput(RequestId("r"), 0, position, tokens, finish, "", 3, 0)


def test_a_gap_is_noticed():
    completion = ClientCompletion(0, None)
    completion.take(output(0, [1, 2]))
    with pytest.raises(OutputGap, match="has 2 tokens, the next ones start at 3"):
        completion.take(output(3, [4]))


def test_nothing_comes_after_the_end():
    completion = ClientCompletion(0, None)
    assert completion.take(output(0, [1], FinishReason.LENGTH)).finish is FinishReason.LENGTH
    assert completion.take(output(1, [2])) is None
    assert completion.token_ids == [1]


def test_a_repeat_alone_is_no_news():
    completion = ClientCompletion(0, None)
    completion.take(output(0, [1, 2, 3]))
    assert completion.take(output(1, [2, 3])) is None


def prompt_part(start, end):
    places = range(start, end)
    return PromptLogprobs(start, [-float(place) for place in places], list(places), [-0.5] * len(places))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=10))
def test_each_place_of_a_prompt_comes_once(pieces):
    prompt = ClientPrompt(30, 1)
    got = []
    for back, forward in [*pieces, (5, 30)]:
        assert prompt.is_wanted == (len(got) < 29) and prompt.has_begun == bool(got)
        news = prompt.take(prompt_part(max(1, prompt.next - back), min(30, prompt.next + forward)))
        if news is not None:
            assert (news.position, news.top_ids) == (len(got) + 1, list(range(news.position, news.end)))
            got += news.logprobs
    assert got == [-float(place) for place in range(1, 30)]


def test_a_gap_in_a_prompt_is_noticed():
    prompt = ClientPrompt(30, 0)
    prompt.take(prompt_part(1, 5))
    with pytest.raises(OutputGap, match="from 5 on are missing, the next ones start at 6"):
        prompt.take(prompt_part(6, 7))
    with pytest.raises(OutputGap, match="end at 5 of 30 tokens"):
        prompt.require_whole()
    for none_wanted in (ClientPrompt(30, None), ClientPrompt(1, 3)):
        assert not none_wanted.is_wanted
        none_wanted.require_whole()


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=10))
def test_repeats_never_show(count, pieces):
    """Any sequence of overlapping pieces gives every token once, with its own log-probability."""
    ids = list(range(100, 100 + count))
    completion = ClientCompletion(0, None)
    got = []
    for back, forward in [*pieces, (5, count)]:
        known = len(completion.token_ids)
        start, end = max(0, known - back), min(count, known + forward)
        delta = completion.take(output(start, ids[start:end], FinishReason.LENGTH if end == count else None))
        if delta is not None:
            got += delta.tokens
            assert delta.num_output_tokens == len(got)
    assert [(token.token_id, token.logprob) for token in got] == [(token, -float(token)) for token in ids]


def test_text_goes_on_over_a_repeat():
    ids = TOKENIZER.encode("größe STOP 日本語")
    (completion,) = new_completions(SamplingParams(max_tokens=99), TOKENIZER, wants_text=True)
    pieces = []
    for start in range(0, len(ids), 2):
        end = min(start + 2, len(ids))
        finish = FinishReason.LENGTH if end == len(ids) else None
        pieces.append(completion.take(output(max(0, start - 3), ids[max(0, start - 3) : end], finish)).text)
    assert "".join(pieces) == "größe STOP 日本語"


def test_a_stop_string_ends_it_and_cuts_what_came_along():
    ids = TOKENIZER.encode("abc")
    assert len(ids) == 3
    (completion,) = new_completions(SamplingParams(max_tokens=99, stop=("b",)), TOKENIZER, wants_text=True)
    delta = completion.take(output(0, ids))
    assert (delta.text, delta.finish, len(delta.tokens)) == ("a", FinishReason.STOP, 2)
    assert completion.stopped_by_text


def test_the_end_token_has_no_text():
    ids = TOKENIZER.encode("ab")
    (completion,) = new_completions(SamplingParams(max_tokens=99), TOKENIZER, wants_text=True)
    delta = completion.take(output(0, ids, FinishReason.STOP))
    assert (delta.text, completion.token_ids, completion.stopped_by_text) == ("a", ids, False)


def test_stop_strings_need_no_text_for_the_client():
    (completion,) = new_completions(SamplingParams(max_tokens=9, stop=("b",)), TOKENIZER, wants_text=False)
    assert completion.take(output(0, TOKENIZER.encode("ab"))).finish is FinishReason.STOP
    (plain,) = new_completions(SamplingParams(max_tokens=9), TOKENIZER, wants_text=False)
    assert plain.take(output(0, [1])).text is None
