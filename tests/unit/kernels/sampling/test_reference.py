"""The mathematics of sampling against the oracle: draws, kept tokens, distributions, penalties, log-probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.sampling import noise, reference
from tests.support import sampling_oracle as oracle

NEVER = float("-inf")


def keys(seeds, positions):
    words = torch.tensor([noise.seed_words(seed) for seed in seeds], dtype=torch.int32)
    return noise.row_keys(words, torch.tensor(positions, dtype=torch.int32))


def draws(logits, row_keys, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """One token for each key, all of the same logits and filters."""
    num = len(row_keys)
    x = torch.tensor(logits, dtype=torch.float32).expand(num, -1).contiguous()
    ids = torch.arange(x.shape[1])[None]
    if top_k:
        x, ids = reference.restrict_to_top_k(x, [top_k] * num)
    chosen = reference.choose(
        x,
        ids,
        row_keys,
        torch.full((num,), temperature),
        torch.full((num,), top_p, dtype=torch.float64) if top_p < 1 else None,
        torch.full((num,), math.log(min_p), dtype=torch.float64) if min_p else None,
    )
    return chosen.tolist()


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.1, 0.5, 1.0, 1.7, 30.0]),
        "top_k": st.integers(1, 12),
        "top_p": st.one_of(st.sampled_from([1e-9, 0.5, 0.95, 1 - 1e-6]), st.floats(0.001, 0.999)),
        "min_p": st.sampled_from([1e-9, 0.01, 0.3, 0.9, 1.0]),
    },
)
# Few distinct values, so that equal logits at every border are common; -0.0 equals 0.0, and -inf has no mass.
LOGITS = st.lists(
    st.one_of(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 3.0, NEVER]), st.floats(-8, 8, width=32)),
    min_size=1,
    max_size=12,
).filter(lambda logits: max(logits) > NEVER)

NUM_DRAWS = 150
MANY_KEYS = keys([*range(NUM_DRAWS)], [seed * 7 for seed in range(NUM_DRAWS)])


@settings(max_examples=150, deadline=None)
@given(logits=LOGITS, filters=FILTERS)
def test_every_draw_is_the_oracle_s(logits, filters):
    array = np.array(logits, dtype=np.float64)
    assume(oracle.nearest_border(array, **filters) > 1e-5)
    kept = oracle.probabilities(array, **filters)
    for seed, token in enumerate(draws(logits, MANY_KEYS, **filters)):
        expected, lead = oracle.draw(kept, array, filters.get("temperature", 1.0), seed, seed * 7)
        assert token == expected or (lead < 1e-4 and kept[token] > 0)


@pytest.mark.parametrize(
    ("logits", "filters", "kept"),
    [
        ([1, 3, 2], {"top_k": 1}, {1}),
        ([1, 3, 3, 3], {"top_k": 2}, {1, 2}),
        ([3, 3, 1, 3], {"top_k": 1}, {0}),
        ([-0.0, 0.0, -0.0, 0.0], {"top_k": 2}, {0, 1}),
        ([1, 2, 3], {"top_k": 3}, {0, 1, 2}),
        ([1, 2, 3], {"top_k": 100}, {0, 1, 2}),
        ([1, 3, 2], {"top_p": 1e-12}, {1}),
        ([3, 3, 3], {"top_p": 1e-12}, {0}),
        ([0, 0, 0, 0], {"top_p": 0.5}, {0, 1}),
        ([0, 0, 0, 0], {"top_p": 0.5000001}, {0, 1, 2}),
        ([0, 0, 0, 0], {"top_p": 1 - 1e-9}, {0, 1, 2, 3}),
        # of the four that top_k leaves, each has a quarter of the mass
        ([0, 0, 0, 0, 0, 0, 0, 0], {"top_k": 4, "top_p": 0.5}, {0, 1}),
        ([2, 3, 3, 1], {"min_p": 1.0}, {1, 2}),
        ([0, math.log(0.5) + 1e-5, math.log(0.5) - 1e-5], {"min_p": 0.5}, {0, 1}),
        # min_p is taken relative to the largest, which neither top_k nor top_p removes
        ([0, -0.1, -0.2, -3], {"min_p": 0.04, "top_p": 0.999}, {0, 1, 2, 3}),
        ([0, NEVER, 0], {}, {0, 2}),
    ],
)
def test_the_kept_tokens(logits, filters, kept):
    assert set(draws(logits, MANY_KEYS, **filters)) == kept


def test_a_temperature_near_0_is_greedy():
    assert set(draws([1.0, 1.0001, 0.0], MANY_KEYS, temperature=1e-30)) == {1}


BIG = 16384
BY_SEED = keys(range(BIG), [11] * BIG)
BY_POSITION = keys([2**40 + 1] * BIG, range(BIG))
DISTRIBUTIONS = {
    "flat": np.zeros(20),
    "steps": np.log(np.arange(1, 31, dtype=np.float64)),
    "peaked": np.concatenate([[9.0, 8.0], np.linspace(-1, 3, 200)]),
    "ties": np.repeat([2.0, 1.0, 0.0, -1.0], 6),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 7},
        {"top_p": 0.83},
        {"min_p": 0.11},
        {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("row_keys", [BY_SEED, BY_POSITION], ids=["seeds", "positions"])
def test_draws_have_the_exact_distribution(name, filters, row_keys):
    logits = DISTRIBUTIONS[name].astype(np.float32)
    p = oracle.probabilities(logits.astype(np.float64), **filters)
    counts = np.bincount(draws(logits.tolist(), row_keys, **filters), minlength=len(p))
    assert not counts[p == 0].any()
    statistic, bound = oracle.chi_square(counts.tolist(), (p * BIG).tolist())
    assert statistic < bound


def test_the_test_of_the_distribution_can_fail():
    logits = DISTRIBUTIONS["steps"]
    counts = np.bincount(draws(logits.tolist(), BY_SEED, temperature=1.2), minlength=30)
    statistic, bound = oracle.chi_square(counts.tolist(), (oracle.probabilities(logits) * BIG).tolist())
    assert statistic > bound


def test_negligible_tokens_can_neither_win_nor_weigh():
    assert math.exp(reference.NEGLIGIBLE) < reference.MASS_STEP / 2
    best, lower = np.float32(0) + np.float32(noise.NOISE_MIN), np.float32(reference.NEGLIGIBLE)
    assert lower + np.float32(noise.NOISE_MAX) < best
    assert reference.MAX_VOCAB / reference.MASS_STEP <= 2**53


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([1.0, 4.0, 8.0, 20.0, 100.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_p=st.sampled_from([None, 0.3, 0.95]),
    min_p=st.sampled_from([None, 0.02]),
)
def test_leaving_out_negligible_tokens_never_changes_a_draw(seed, spread, temperature, top_p, min_p):
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (1, 1500)).astype(np.float32))
    x[0, 3::7] = NEVER
    temperatures = torch.tensor([temperature])
    filters = (
        None if top_p is None else torch.tensor([top_p], dtype=torch.float64),
        None if min_p is None else torch.tensor([math.log(min_p)], dtype=torch.float64),
    )
    fewer, ids = reference.restrict_to_contenders(x, temperatures)
    assert fewer.shape == ids.shape and (x[0, ids[0]] == fewer[0]).all()
    if spread >= 20:
        assert len(ids[0]) < 1000
    for position in range(20):
        row_keys = keys([seed], [position])
        whole = reference.choose(x, torch.arange(1500)[None], row_keys, temperatures, *filters)
        assert whole.tolist() == reference.choose(fewer, ids, row_keys, temperatures, *filters).tolist()


@given(st.lists(st.lists(st.sampled_from([-1.5, -0.0, 0.0, 2.0, 7.0, NEVER]), min_size=6, max_size=6), min_size=1))
def test_top_tokens_and_greedy_prefer_the_lower_of_equals(rows):
    x = torch.tensor(rows)
    order = [sorted(range(6), key=lambda token, row=row: (-row[token], token)) for row in rows]
    for k in (1, 4, 6):
        assert reference.top_tokens(x, k).tolist() == [ids[:k] for ids in order]
    assert reference.greedy(x).tolist() == [ids[0] for ids in order]


@pytest.mark.parametrize("value", [-3.0, -1e-30, 2.5, 1e30])
def test_top_tokens_tell_neighbouring_floats_apart(value):
    larger = np.nextafter(np.float32(value), np.float32(np.inf))
    smaller = np.nextafter(np.float32(value), np.float32(-np.inf))
    assert reference.top_tokens(torch.tensor([[smaller, value, larger, value]]), 4).tolist() == [[2, 1, 3, 0]]


@given(
    rows=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=9, max_size=9), min_size=1, max_size=4),
    top_k=st.lists(st.integers(1, 12), min_size=4, max_size=4),
)
def test_top_k_keeps_each_row_s_own_number(rows, top_k):
    x = torch.tensor(rows)
    kept, ids = reference.restrict_to_top_k(x, top_k[: len(rows)])
    for row, k, row_kept, row_ids in zip(rows, top_k, kept.tolist(), ids.tolist(), strict=False):
        assert row_ids == sorted(row_ids)
        expected = sorted(range(9), key=lambda token, row=row: (-row[token], token))[:k]
        assert [token for token, value in zip(row_ids, row_kept, strict=True) if value > NEVER] == sorted(expected)
        assert all(value == row[token] for token, value in zip(row_ids, row_kept, strict=True) if value > NEVER)


def test_penalties_follow_the_formulas():
    x = torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5, 3.0])
    ids, counts = torch.tensor([0, 1, 3, 4]), torch.tensor([0.0, 0.0, 1.0, 3.0])
    reference.penalise_(x, ids, counts, 2.0, 0.25, 0.5)
    expected = [2.0 / 2, -2.0 * 2, 1.0, -1.0 * 2 - 0.25 - 0.5, 0.5 / 2 - 0.25 - 1.5, 3.0]
    assert x.tolist() == expected


def test_a_repetition_penalty_near_0_leaves_a_finite_logit():
    x = torch.tensor([1e20, -1e20, NEVER, 0.0])
    reference.penalise_(x, torch.arange(4), torch.zeros(4), 1e-30, 0.0, 0.0)
    assert x.tolist() == [torch.finfo(torch.float32).max, pytest.approx(-1e-10), NEVER, 0.0]


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_bitmask(allowed):
    words = np.zeros(-(-len(allowed) // 32), dtype=np.uint32)
    for token, is_allowed in enumerate(allowed):
        words[token // 32] |= np.uint32(is_allowed) << np.uint32(token % 32)
    bitmask = torch.from_numpy(words.view(np.int32))
    assert reference.allowed_tokens(bitmask, len(allowed)).tolist() == allowed
    x = torch.zeros(len(allowed))
    reference.forbid_(x, bitmask)
    assert (x == 0).tolist() == allowed and (x == NEVER).tolist() == [not one for one in allowed]


def test_log_probabilities_are_those_of_float64():
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 6, (5, 5000)).astype(np.float32))
    ids = torch.tensor([[0, 4999], [1, 7], [2, 2], [3, 8], [4, 9]])
    exact = x.double().numpy()
    exact -= exact.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    expected = np.take_along_axis(exact, ids.numpy(), axis=1)
    assert (reference.log_probabilities(x, ids).numpy() == expected.astype(np.float32)).all()
