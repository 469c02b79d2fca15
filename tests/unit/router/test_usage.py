"""Cached tokens of a prompt, split by where they were."""

from hypothesis import given
from hypothesis import strategies as st

from router.messages import CachedTokens
from router.record import PromptSources, Usage


def counted(num_cached, sources, *, prompt=1000, computed=()):
    usage = Usage(prompt)
    for num_blocks in computed:
        usage.computed(num_blocks)
    usage.count(num_cached, sources)
    return usage.cached


def test_a_rank_that_did_it_all_found_its_own():
    assert counted(640, PromptSources()) == CachedTokens(decode=640)


def test_what_the_prefill_rank_computed_is_not_cached():
    sources = PromptSources(decode=2, prefill=5)
    assert counted(960, sources, computed=[5]) == CachedTokens(decode=128, prefill=192)


def test_a_prefill_rank_that_holds_less_adds_nothing():
    assert counted(960, PromptSources(decode=4, prefill=3), computed=[3]) == CachedTokens(decode=192)


def test_what_did_not_arrive_is_not_counted():
    assert counted(192, PromptSources(decode=1, prefill=9)) == CachedTokens(decode=64, prefill=128)


def test_output_that_was_delivered_is_no_prompt():
    assert counted(640, PromptSources(), prompt=500) == CachedTokens(decode=500)


def test_what_an_earlier_try_computed_is_not_cached():
    assert counted(960, PromptSources(decode=2, prefill=15), computed=[7, 15]) == CachedTokens(decode=128, prefill=320)


def test_only_the_first_count_stands():
    usage = Usage(1000)
    usage.count(0, PromptSources())
    usage.count(960, PromptSources())
    assert usage.cached == CachedTokens()


@given(
    found=st.integers(0, 20).map(lambda blocks: 64 * blocks),
    decode=st.none() | st.integers(0, 15),
    prefill=st.integers(0, 15),
    computed=st.lists(st.integers(0, 15), max_size=2),
    prompt=st.integers(1, 1000),
)
def test_the_parts_never_exceed_what_was_found(found, decode, prefill, computed, prompt):
    cached = counted(found, PromptSources(decode, prefill), prompt=prompt, computed=computed)
    assert min(cached.decode, cached.prefill, cached.fetched) >= 0
    limits = [found, prompt, *(64 * blocks for blocks in computed)]
    if decode is not None:
        limits.append(64 * max(decode, prefill))
    assert cached.total == min(limits)
