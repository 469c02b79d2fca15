"""Which pieces of a device's step take the multi-head form: by a count of products, and in runs of bounded keys."""

import dataclasses
from pathlib import Path

import pytest

from baleen.model_spec import load_model_spec
from kernels.dsa.pieces import PieceRun, Span
from workers.model.attention_form import DENSE_KEYS, dense_bytes, prefers_heads, split_by_form


@pytest.fixture(scope="module")
def spec():
    return load_model_spec(Path("tests/data/deepseek_v32_config.json"))


def spans_of(*sizes):
    """Spans of pieces given as tokens before and tokens new."""
    spans, row, key = [], 0, 0
    for start, length in sizes:
        spans.append(Span(row, length, key, start + length))
        row, key = row + length, key + start + length
    return spans, row


@pytest.mark.parametrize(
    ("start", "length", "dense"),
    [
        (0, 2, True),
        (0, 2048, True),
        (1, 2047, True),
        (0, 1, False),  # one token
        (0, 2049, False),  # a query that sees more than index_topk keys
        (1900, 148, False),  # 1900 keys are expanded for 148 queries: (1900 * 512 * 256) > 148 * 1974 * 768
        (1900, 171, False),  # beyond index_topk
        (1800, 171, True),
    ],
)
def test_the_rule(spec, start, length, dense):
    spans, num_rows = spans_of((start, length))
    split = split_by_form(spec, spans, num_rows)
    assert bool(split.dense) is dense
    assert split.latent == (() if dense else (slice(0, length),))


@pytest.mark.parametrize(
    ("start", "length"), [(0, 1), (5, 1), (500, 120), (500, 150), (1000, 200), (40, 10), (2000, 9)]
)
def test_fewer_products_are_preferred(spec, start, length):
    """Counted query by query; the rule takes a query to see half the piece."""
    heads, rank = spec.num_heads, spec.kv_lora_rank
    seen = sum(start + place + 0.5 for place in range(length))
    widths = spec.qk_nope_head_dim + spec.v_head_dim
    by_head = heads * ((start + length) * rank * widths + seen * (spec.qk_head_dim + spec.v_head_dim))
    latent = heads * (length * rank * widths + seen * (spec.latent_dim + rank))
    assert prefers_heads(spec, start, length) is (by_head <= latent)


def test_neighbours_go_together_up_to_a_bound(spec):
    spans, num_rows = spans_of((0, 2000), (0, 2000), (0, 2000), (700, 1), (600, 1000), (3000, 5), (0, 9))
    split = split_by_form(spec, spans, num_rows + 2)
    assert split.dense == (
        (slice(0, 2), PieceRun(0, 4000, 0, 4000, 2000, 2000)),
        (slice(2, 3), PieceRun(4000, 2000, 4000, 2000, 2000, 2000)),
        (slice(4, 5), PieceRun(6001, 1000, 6701, 1600, 1000, 1600)),
        (slice(6, 7), PieceRun(7006, 9, 11306, 9, 9, 9)),
    )
    assert split.latent == (slice(6000, 6001), slice(7001, 7006), slice(7015, 7017))
    assert max(run.num_keys for _, run in split.dense) <= DENSE_KEYS


def test_steps_of_decode_and_other_widths_stay_in_latent_space(spec):
    assert split_by_form(spec, (), 8).latent == (slice(0, 8),)
    narrow = dataclasses.replace(spec, v_head_dim=64)
    spans, num_rows = spans_of((0, 100))
    assert not split_by_form(narrow, spans, num_rows).dense and dense_bytes(narrow) == 0
    assert dense_bytes(spec) == DENSE_KEYS * 2 * (576 + 128 * 256)
