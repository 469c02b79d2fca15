"""One step's inputs on a device: built on the host as a few small arrays, which `workers.staging` carries over.

Every token is a row: a query with the block table of its sequence and the number of keys that it sees.

Legend: T tokens, B sequences, P blocks of the longest, N tokens that need logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from baleen.blocks import BLOCK_TOKENS
from kernels.dsa.pieces import Span
from workers.model.forward import Array, Piece, scored_tokens
from workers.parallel.lockstep import DecodeSize


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """token_ids, positions, slots: [T] int64; a slot of -1 is not written. block_table: [B, P] int32. sequences: [T]
    int32, each token's row of it; tokens of one sequence lie together. lengths: [T] int32, keys that a token sees, its
    own included. logit_tokens: [N] int64, first those that sample, then those that score a prompt. spans: [B, 4] int32,
    the numbers of each sequence's Span, which `pieces` has on the host; no sequences in a step of decode. most_context:
    bound of all lengths, known on the host. is_decode: token t is the one token of sequence t. is_filled: the tokens
    that are there come first, and rows of length 0 fill the step up to a size that all ranks have agreed on.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor
    block_table_BP: torch.Tensor
    sequences_T: torch.Tensor
    lengths_T: torch.Tensor
    logit_tokens_N: torch.Tensor
    spans_B4: torch.Tensor
    pieces: tuple[Span, ...]
    most_context: int
    is_decode: bool
    is_filled: bool = False

    @property
    def num_tokens(self) -> int:
        """Length of the token axis."""
        return self.token_ids_T.shape[0]


@dataclass(frozen=True, slots=True)
class HostBatch:
    """The arrays of a DeviceBatch, in its order, and what is known on the host. filled_to: the size that it has, if it
    was filled up.
    """

    arrays: tuple[npt.NDArray[np.generic], ...]
    most_context: int
    is_decode: bool
    filled_to: DecodeSize | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the token axis."""
        return len(self.arrays[0])

    def on(self, tensors: Sequence[torch.Tensor]) -> DeviceBatch:
        """The batch of these tensors, which hold the arrays."""
        token_ids, positions, slots, block_table, sequences, lengths, wanted, spans = tensors
        return DeviceBatch(
            token_ids,
            positions,
            slots,
            block_table,
            sequences,
            lengths,
            wanted,
            spans,
            tuple(Span(*numbers) for numbers in self.arrays[-1].tolist()),
            self.most_context,
            self.is_decode,
            self.filled_to is not None,
        )


def build_host_batch(pieces: Sequence[Piece], table: Array, *, fill_to: DecodeSize | None = None) -> HostBatch:
    """Lay the pieces out, in their order. table: [rows, most blocks] int64 block ids.

    fill_to: fill a decode step, or one of nothing, up to so many tokens, with rows that see nothing and write nothing,
    and its table up to the blocks of so many keys.
    """
    sizes = np.array([len(piece.token_ids) for piece in pieces], dtype=np.int64)
    starts = np.array([piece.start for piece in pieces], dtype=np.int64)
    rows = np.array([piece.row for piece in pieces], dtype=np.int64)
    ends = np.cumsum(sizes)
    total = int(sizes.sum())
    padded = total if fill_to is None else fill_to.rows
    sequences = np.repeat(np.arange(len(pieces)), sizes)
    positions = np.zeros(padded, dtype=np.int64)
    positions[:total] = np.arange(total) + np.repeat(starts - (ends - sizes), sizes)
    token_ids = np.zeros(padded, dtype=np.int64)
    token_ids[:total] = [token for piece in pieces for token in piece.token_ids]
    slots = np.full(padded, -1, dtype=np.int64)
    blocks = table[rows[sequences], positions[:total] // BLOCK_TOKENS]
    slots[:total] = blocks * BLOCK_TOKENS + positions[:total] % BLOCK_TOKENS
    lengths = np.zeros(padded, dtype=np.int32)
    lengths[:total] = positions[:total] + 1
    longest = int(lengths.max(initial=0)) if fill_to is None else fill_to.context
    num_blocks = max(1, -(-longest // BLOCK_TOKENS))
    decode = padded > 0 and bool((sizes == 1).all())
    num_sequences = padded if decode else max(1, len(pieces))
    block_table = np.zeros((num_sequences, num_blocks), dtype=np.int32)
    width = min(num_blocks, table.shape[1])
    block_table[: len(pieces), :width] = table[rows, :width]
    all_sequences = np.arange(padded, dtype=np.int32)
    if not decode:
        all_sequences[:total] = sequences
    sampling = [place for place, piece in enumerate(pieces) if piece.samples]
    wanted = np.arange(padded)
    if fill_to is None:
        wanted = np.concatenate((ends[sampling] - 1, scored_tokens(pieces, ends - sizes)))
    keys = starts + sizes
    spans = np.stack((ends - sizes, sizes, np.cumsum(keys) - keys, keys), axis=1).astype(np.int32)
    if decode:
        spans = spans[:0]
    return HostBatch(
        arrays=(token_ids, positions, slots, block_table, all_sequences, lengths, wanted.astype(np.int64), spans),
        most_context=longest,
        is_decode=decode,
        filled_to=fill_to,
    )
