"""Prompts of the warm-up: every size, at every place that attention tells apart, as far as the cache reaches."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.model.warm_up import SHORTEST, warm_up_prompts


def test_those_of_the_model():
    found = warm_up_prompts(most_tokens=256, index_topk=2048, most_context=163840)
    sizes = [63, 128, 256]
    assert found == [range(start, start + size) for size in sizes for start in (0, 2048 - size, 2048)]


def test_a_small_cache_has_fewer():
    assert warm_up_prompts(most_tokens=2048, index_topk=64, most_context=128) == [
        range(63),
        range(1, 64),
        range(64, 127),
        range(128),
    ]


@given(st.integers(1, 9000), st.integers(1, 4096), st.integers(1, 2000).map(lambda blocks: 64 * blocks))
def test_the_first_fits_in_a_block_and_sizes_go_up_to_the_largest(most_tokens, index_topk, most_context):
    found = warm_up_prompts(most_tokens=most_tokens, index_topk=index_topk, most_context=most_context)
    sizes = [len(places) for places in found]
    assert found[0] == range(SHORTEST) and sizes == sorted(sizes) and len(set(found)) == len(found)
    assert sizes[-1] == max(SHORTEST, min(most_tokens, most_context))
    assert all(places.stop <= most_context for places in found)
    assert all(later <= 2 * (earlier + 1) for earlier, later in pairwise(sizes))
    reaches = [size for size in set(sizes) if index_topk + size <= most_context]
    assert all(range(index_topk, index_topk + size) in found for size in reaches)
