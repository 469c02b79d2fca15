"""Which form of attention a piece takes, by its multiply-adds: expanded keys and values of all heads, or latent ones.

On a device, pieces of a step are split into those that take the multi-head form, in runs whose expanded keys are
bounded, and the rows between, which are attended to in latent space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from baleen.model_spec import ModelSpec
from kernels.dsa.pieces import PieceRun, Span

DENSE_KEYS = 4096
"""Most keys that are expanded at a time on a device; the keys of one piece, at most index_topk, always fit."""

DENSE_WIDTHS = (128, 128)
"""Widths of a head's unrotated key and of its value that the kernel has; other models stay in latent space."""


def prefers_heads(spec: ModelSpec, start: int, length: int, *, gather_cost: int = 0) -> bool:
    """Whether expanding keys per head costs fewer operations than attending in latent space.

    The piece's `length` tokens come after `start` others of their sequence. gather_cost: of one number of a record that
    was selected, in multiply-adds.
    """
    up_projection = spec.num_heads * spec.kv_lora_rank * (spec.qk_nope_head_dim + spec.v_head_dim)
    mean_seen = start + length / 2
    by_head = (start + length) * up_projection + length * mean_seen * spec.num_heads * (
        spec.qk_head_dim + spec.v_head_dim
    )
    chosen = min(mean_seen, spec.index_topk)
    gather = gather_cost * spec.latent_dim if mean_seen > spec.index_topk else 0
    latent = length * (up_projection + chosen * (spec.num_heads * (spec.latent_dim + spec.kv_lora_rank) + gather))
    return by_head <= latent


@dataclass(frozen=True, slots=True)
class FormSplit:
    """A step's rows by their form. dense: runs of pieces, with the places of the pieces. latent: all other rows."""

    dense: tuple[tuple[slice, PieceRun], ...]
    latent: tuple[slice, ...]


def split_by_form(spec: ModelSpec, spans: Sequence[Span], num_rows: int) -> FormSplit:
    """Split a device's step of `num_rows` rows. spans: its pieces, or none where all rows stay in latent space.

    The multi-head form is for pieces of more than one token whose queries all see at most index_topk keys, where it
    costs fewer operations.
    """
    dense: list[tuple[slice, PieceRun]] = []
    latent = []
    first = 0
    for is_dense, places in groupby(range(len(spans)), lambda place: _is_dense(spec, spans[place])):
        pieces = list(places)
        last = spans[pieces[-1]]
        end = last.first_row + last.num_rows
        if is_dense:
            dense += _runs(spans, pieces)
        else:
            latent.append(slice(first, end))
        first = end
    if first < num_rows:
        latent.append(slice(first, num_rows))
    return FormSplit(tuple(dense), tuple(latent))


def _is_dense(spec: ModelSpec, span: Span) -> bool:
    return (
        (spec.qk_nope_head_dim, spec.v_head_dim) == DENSE_WIDTHS
        and span.num_rows > 1
        and span.num_keys <= spec.index_topk
        and prefers_heads(spec, span.num_keys - span.num_rows, span.num_rows)
    )


def _runs(spans: Sequence[Span], pieces: Sequence[int]) -> list[tuple[slice, PieceRun]]:
    """Neighbouring pieces in runs of at most DENSE_KEYS keys."""
    runs = []
    first = pieces[0]
    for place in pieces:
        following = spans[place + 1] if place < pieces[-1] else None
        if following is None or following.first_key + following.num_keys - spans[first].first_key > DENSE_KEYS:
            runs.append((slice(first, place + 1), _run(spans[first : place + 1])))
            first = place + 1
    return runs


def _run(spans: Sequence[Span]) -> PieceRun:
    return PieceRun(
        first_row=spans[0].first_row,
        num_rows=sum(span.num_rows for span in spans),
        first_key=spans[0].first_key,
        num_keys=sum(span.num_keys for span in spans),
        most_rows=max(span.num_rows for span in spans),
        most_keys=max(span.num_keys for span in spans),
    )


def dense_bytes(spec: ModelSpec) -> int:
    """Bytes of the records, keys and values of one run, in bfloat16."""
    if (spec.qk_nope_head_dim, spec.v_head_dim) != DENSE_WIDTHS:
        return 0
    return DENSE_KEYS * 2 * (spec.latent_dim + spec.num_heads * (spec.qk_nope_head_dim + spec.v_head_dim))
