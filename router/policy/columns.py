"""A snapshot as arrays, one value for each of its ranks in their order: what a policy calculates with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baleen.ids import Incarnation

if TYPE_CHECKING:
    from router.policy.snapshot import RankView

Figures = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]

_REPORTED = ("room", "num_requests", "tokens_ahead", "prefill_tokens_per_s", "decode_tokens_per_s", "draining")

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """Arrays over R ranks, each [R]; see `RankView` for what they hold. lots: a random number for each incarnation."""

    positions: Mapping[Incarnation, int]
    pools: tuple[str, ...]
    is_prefill: Flags
    is_mixed: Flags
    lots: npt.NDArray[np.uint64]
    total_blocks: Figures
    max_running: Figures
    room: Figures
    num_requests: Figures
    tokens_ahead: Figures
    prefill_tokens_per_s: Figures
    decode_tokens_per_s: Figures
    draining: Flags

    def replaced(self, changes: Mapping[int, RankView]) -> Columns:
        """The columns after the ranks at these positions have reported; nothing else of them may differ."""
        reported = {name: getattr(self, name).copy() for name in _REPORTED}
        for position, rank in changes.items():
            for name, column in reported.items():
                column[position] = getattr(rank, name)
        return replace(self, **reported)

    def chances(self, seed: int, positions: Positions) -> npt.NDArray[np.uint64]:
        """Places of ranks in an order that the seed alone decides: the same in whatever company (rendezvous hashing).

        The finalizer of splitmix64, over the rank's lot and the seed.
        """
        mixed = self.lots[positions] ^ np.uint64(seed * _STEP & _MASK)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        return mixed ^ (mixed >> np.uint64(31))


def columns_of(ranks: Sequence[RankView]) -> Columns:
    """All ranks, laid out anew."""
    return Columns(
        positions={rank.incarnation: position for position, rank in enumerate(ranks)},
        pools=tuple([rank.pool for rank in ranks]),
        is_prefill=np.array([rank.role == "prefill" for rank in ranks], dtype=np.bool_),
        is_mixed=np.array([rank.role == "mixed" for rank in ranks], dtype=np.bool_),
        lots=np.array([_lot(rank.incarnation) for rank in ranks], dtype=np.uint64),
        total_blocks=_figures([rank.total_blocks for rank in ranks]),
        max_running=_figures([rank.max_running for rank in ranks]),
        room=_figures([rank.room for rank in ranks]),
        num_requests=_figures([rank.num_requests for rank in ranks]),
        tokens_ahead=_figures([rank.tokens_ahead for rank in ranks]),
        prefill_tokens_per_s=_figures([rank.prefill_tokens_per_s for rank in ranks]),
        decode_tokens_per_s=_figures([rank.decode_tokens_per_s for rank in ranks]),
        draining=np.array([rank.draining for rank in ranks], dtype=np.bool_),
    )


def _figures(values: Sequence[float]) -> Figures:
    return np.array(values, dtype=np.float64)


@lru_cache(maxsize=8192)
def _lot(incarnation: Incarnation) -> int:
    return int.from_bytes(blake2b(incarnation.encode(), digest_size=8).digest(), "little")
