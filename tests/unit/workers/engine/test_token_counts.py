"""Counts kept step by step against counts of the whole output."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from workers.engine.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 500), max_size=200)


@given(prompt=TOKENS, with_prompt=st.booleans(), steps=st.lists(TOKENS, max_size=5))
def test_counts_equal_those_of_the_whole_output(prompt, with_prompt, steps):
    counts = TokenCounts(prompt if with_prompt else [], output_start=len(prompt))
    token_ids = list(prompt)
    for step in [[], *steps]:
        token_ids += step
        ids, output_counts = counts.update(token_ids)
        expected = Counter(token_ids[len(prompt) :])
        if with_prompt:
            expected.update(dict.fromkeys(prompt, 0))
        assert len(ids) == len(set(ids.tolist()))
        assert dict(zip(ids.tolist(), output_counts.tolist(), strict=True)) == expected
