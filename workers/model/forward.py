"""One step's tensors: what the model computes with, the same for every layer, built once from a Batch.

The token axis holds first the row groups, then the segments. A row is one query with a block table of its own
(decode, and short multi-token decode); rows of similar context length share a group and are computed together. A
segment is a chunk of one request's prompt, computed on its own.

Legend: T tokens, B rows of a group, S keys of a group's longest row, n blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from baleen.blocks import BLOCK_TOKENS
from workers.engine.prompt_scores import NOTHING

ROWS_PER_ITEM = 4
"""A piece of at most this many tokens is computed as rows, a longer one as a segment."""

PADDING_LIMIT = 1.5
"""Rows share a group while padding to the longest reads at most this many times the needed keys."""

Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Queries with a block table each, padded to the longest.

    tokens: place on the token axis. blocks: [B, S / 64] int64. hidden: [B, S] bool, keys that the row must not see.
    sparse: the rows see more keys than they may attend to, so the indexer selects.
    """

    tokens: slice
    blocks_Bn: torch.Tensor
    hidden_BS: torch.Tensor
    sparse: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A chunk of one request: positions start to start + length - 1, which sees everything before it.

    tokens: place on the token axis. blocks: [n] int64, covering all positions up to the chunk's end.
    """

    tokens: slice
    start: int
    length: int
    blocks_n: torch.Tensor

    @property
    def context(self) -> int:
        """Positions that the last query sees, its own included."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """token_ids, positions, slots: [T] int64. logit_tokens: [N] int64, places on the token axis that need logits: first
    those that sample, then those that score a prompt.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    groups: tuple[RowGroup, ...]
    segments: tuple[Segment, ...]
    logit_tokens_N: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Length of the token axis."""
        return self.token_ids_T.shape[0]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one request in this step: token ids at positions from `start` on, and its row of the block table.

    scored: as in BatchItem.
    """

    token_ids: Sequence[int]
    start: int
    row: int
    samples: bool
    scored: range = NOTHING


def scored_tokens(pieces: Sequence[Piece], firsts: Array) -> Array:
    """Places on the token axis whose logits score a prompt, in the order of the pieces. firsts: place of each's first
    token.
    """
    found = [
        np.arange(piece.scored.start, piece.scored.stop) - 1 - piece.start + first
        for piece, first in zip(pieces, firsts, strict=True)
        if piece.scored
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def build_forward_batch(pieces: Sequence[Piece], table: Array, dense_limit: int) -> tuple[ForwardBatch, list[int]]:
    """Lay the pieces out on the token axis.

    table: [rows, most blocks] int64 block ids. dense_limit: contexts up to this length need no indexer (index_topk).
    Returns the batch and, for each row of its logits that samples, the index of the piece that it belongs to.
    """
    sizes = [len(piece.token_ids) for piece in pieces]
    short = [i for i, size in enumerate(sizes) if size <= ROWS_PER_ITEM]
    short.sort(key=lambda i: pieces[i].start)
    order = short + [i for i, size in enumerate(sizes) if size > ROWS_PER_ITEM]
    ids = [token for i in order for token in pieces[i].token_ids]
    lengths = np.array([sizes[i] for i in order], dtype=np.int64)
    starts = np.array([pieces[i].start for i in order], dtype=np.int64)
    table_rows = np.array([pieces[i].row for i in order], dtype=np.int64)
    ends = np.cumsum(lengths)
    # position of each token: its piece's start plus its place in the piece
    positions = np.arange(len(ids)) + np.repeat(starts - (ends - lengths), lengths)
    rows = np.repeat(table_rows, lengths)
    slots = table[rows, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    num_row_tokens = int(lengths[: len(short)].sum())
    sampling = [place for place, i in enumerate(order) if pieces[i].samples]
    firsts = np.empty_like(ends)
    firsts[order] = ends - lengths
    batch = ForwardBatch(
        token_ids_T=torch.tensor(ids, dtype=torch.int64),
        positions_T=torch.from_numpy(positions),
        slots_T=torch.from_numpy(slots),
        groups=tuple(_row_groups(positions[:num_row_tokens], rows[:num_row_tokens], table, dense_limit)),
        segments=tuple(
            Segment(
                tokens=slice(int(ends[place] - lengths[place]), int(ends[place])),
                start=int(starts[place]),
                length=int(lengths[place]),
                blocks_n=torch.from_numpy(table[table_rows[place], : _num_blocks(starts[place] + lengths[place])]),
            )
            for place in range(len(short), len(order))
        ),
        logit_tokens_N=torch.from_numpy(np.concatenate((ends[sampling] - 1, scored_tokens(pieces, firsts)))),
    )
    return batch, [order[place] for place in sampling]


def _num_blocks(num_tokens: int) -> int:
    return int(-(-num_tokens // BLOCK_TOKENS))


def _row_groups(positions: Array, rows: Array, table: Array, dense_limit: int) -> list[RowGroup]:
    """Split rows, whose positions nearly ascend, into groups of one kind and of bounded padding."""
    groups = []
    blocks = (positions // BLOCK_TOKENS + 1).tolist()
    sparse = (positions >= dense_limit).tolist()
    first = 0
    while first < len(blocks):
        needed = longest = 0
        end = first
        while end < len(blocks) and sparse[end] == sparse[first]:
            longest_with, needed_with = max(longest, blocks[end]), needed + blocks[end]
            if longest_with * (end - first + 1) > PADDING_LIMIT * needed_with:
                break
            longest, needed, end = longest_with, needed_with, end + 1
        groups.append(_row_group(slice(first, end), positions, rows, table, longest, sparse=sparse[first]))
        first = end
    return groups


def _row_group(
    tokens: slice, positions: Array, rows: Array, table: Array, num_blocks: int, *, sparse: bool
) -> RowGroup:
    offsets_S = np.arange(num_blocks * BLOCK_TOKENS)
    return RowGroup(
        tokens=tokens,
        blocks_Bn=torch.from_numpy(table[rows[tokens], :num_blocks]),
        hidden_BS=torch.from_numpy(offsets_S[None, :] > positions[tokens, None]),
        sparse=sparse,
    )
