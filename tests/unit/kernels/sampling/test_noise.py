"""The noise: its values for ever, its formula, and that it looks random along every axis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sampling import noise
from tests.support import sampling_oracle as oracle


def keys(seeds, positions):
    words = torch.tensor([noise.seed_words(seed) for seed in seeds], dtype=torch.int32)
    return noise.row_keys(words, torch.tensor(positions, dtype=torch.int32))


def int32(ids):
    return torch.as_tensor(ids, dtype=torch.int32)[None]


# Sampled output that users have seen depends on these numbers: they may never change.
GOLDEN_IDS = [0, 1, 2, 129279]
GOLDEN = {
    (0, 0): [2094369, 2794025, 7285809, 5396443],
    (0, 1): [14069680, 5545564, 13003992, 10662276],
    (1, 0): [10221925, 1421937, 1750214, 5813787],
    (2**32, 0): [16370625, 5257192, 14197502, 8742363],
    (2**63 - 1, 2**31 - 1): [11655227, 12779119, 9062575, 13519751],
    (42, 7): [11921420, 11156383, 9789588, 7874757],
}


def test_noise_never_changes():
    table = noise.noise_bits(keys(*zip(*GOLDEN, strict=True)), int32(GOLDEN_IDS))
    assert table.tolist() == list(GOLDEN.values())
    gumbel = noise.gumbel_noise(keys([42], [7]), int32(GOLDEN_IDS))
    assert gumbel.tolist() == [[1.0738677978515625, 0.8964653015136719, 0.61859130859375, 0.2792396545410156]]


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), min_size=1, max_size=4),
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
)
def test_bits_and_noise_equal_unsigned_64_bit_arithmetic(rows, ids):
    row_keys = keys(*zip(*rows, strict=True))
    assert noise.noise_bits(row_keys, int32(ids)).tolist() == [oracle.noise_bits(*row, ids).tolist() for row in rows]
    assert noise.gumbel_noise(row_keys, int32(ids)).tolist() == [oracle.noise(*row, ids).tolist() for row in rows]


def gumbel_of(bits, monkeypatch):
    monkeypatch.setattr(noise, "noise_bits", lambda keys, ids: torch.as_tensor(bits, dtype=torch.int32))
    return noise.gumbel_noise(torch.empty(0), torch.empty(0))


def test_extremes_are_finite_and_are_the_documented_ones(monkeypatch):
    assert gumbel_of([0, 2**24 - 1], monkeypatch).tolist() == [noise.NOISE_MIN, noise.NOISE_MAX]
    for bound, bits in ((noise.NOISE_MIN, 0), (noise.NOISE_MAX, 2**24 - 1)):
        assert abs(bound + math.log(-math.log((bits + 0.5) / 2**24))) <= noise.NOISE_STEP / 2


def test_inputs_nearest_to_a_rounding_border(monkeypatch):
    bits = np.array([2394407, 16769110, 15548600, 0, 2**23, 2**24 - 1])
    exact = -np.log(-np.log((bits + np.longdouble(0.5)) / 2**24))
    assert gumbel_of(bits, monkeypatch).tolist() == (np.floor(exact * 2**18 + 0.5) / 2**18).tolist()


@pytest.mark.slow
def test_no_input_is_near_a_rounding_border(monkeypatch):
    smallest = math.inf
    for start in range(0, 2**24, 2**20):
        bits = np.arange(start, start + 2**20)
        exact = -np.log(-np.log((bits + np.longdouble(0.5)) / 2**24))
        steps = exact * 2**18
        distance = abs(steps - np.floor(steps) - 0.5) / 2**18
        smallest = min(smallest, float((distance / (1 + abs(exact))).min()))
        assert (gumbel_of(bits, monkeypatch).numpy() == np.floor(steps + 0.5) / 2**18).all()
    assert smallest > 2_900 * 2.0**-53


NUM = 2**16


def along_tokens():
    return noise.noise_bits(keys([5], [3]), int32(range(NUM)))[0]


def along_positions():
    return noise.noise_bits(keys([5] * NUM, range(NUM)), int32([3]))[:, 0]


def along_seeds():
    return noise.noise_bits(keys(range(NUM), [3] * NUM), int32([5]))[:, 0]


def along_high_seeds():
    return noise.noise_bits(keys([seed << 32 for seed in range(NUM)], [3] * NUM), int32([5]))[:, 0]


def along_all_at_once():
    """Token, position and seed grow together, as they do when requests of neighbouring seeds repeat themselves."""
    return torch.stack([noise.noise_bits(keys([i], [i]), int32([i]))[0, 0] for i in range(NUM // 16)])


SERIES = [along_tokens, along_positions, along_seeds, along_high_seeds, along_all_at_once]


def accepted(cells, num_cells):
    counts = np.bincount(cells, minlength=num_cells)
    statistic, bound = oracle.chi_square(counts.tolist(), [len(cells) / num_cells] * num_cells)
    return statistic < bound


@pytest.mark.slow
@pytest.mark.parametrize("series", SERIES)
def test_uniform(series):
    bits = series().numpy()
    for places in (16, 8, 0):
        assert accepted(bits >> places & 0xFF, 256)


@pytest.mark.slow
@pytest.mark.parametrize("series", SERIES)
def test_neighbours_are_independent(series):
    bits = series().numpy()
    for step in (1, 2, 64, 256):
        assert accepted((bits[:-step] >> 20) * 16 + (bits[step:] >> 20), 256)
        correlation = np.corrcoef(bits[:-step], bits[step:])[0, 1]
        assert abs(correlation) < 5 / math.sqrt(len(bits))


def test_rows_are_independent_of_each_other():
    bits = noise.noise_bits(keys([0, 0, 1, 1, 2**32, 7], [0, 1, 0, 1, 0, 0]), int32(range(NUM))).numpy()
    for one in range(len(bits)):
        for other in range(one):
            assert accepted((bits[one] >> 20) * 16 + (bits[other] >> 20), 256)
            assert abs(np.corrcoef(bits[one], bits[other])[0, 1]) < 5 / math.sqrt(NUM)


def test_the_tests_of_randomness_can_fail():
    counter = np.arange(NUM) * 40503 & 0xFFFFFF
    assert accepted(counter & 0xFF, 256)
    assert not accepted((counter[:-1] >> 20) * 16 + (counter[1:] >> 20), 256)


@settings(max_examples=20)
@given(seeds=st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=50))
def test_no_two_seeds_share_their_words(seeds):
    assert len({noise.seed_words(seed) for seed in seeds}) == len(seeds)
