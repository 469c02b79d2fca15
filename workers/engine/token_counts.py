"""Which tokens a completion has seen and how often it put each out, for the penalties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class TokenCounts:
    """Distinct tokens of one completion, counted in its output; each step looks at the new tokens only.

    prompt_ids: tokens that count as seen, 0 times in the output. output_start: where the output begins in the token
    ids that `update` is given.
    """

    __slots__ = ("_counts", "_ids", "_next", "_places")

    def __init__(self, prompt_ids: Sequence[int], *, output_start: int) -> None:
        self._ids = np.unique(np.array(prompt_ids, dtype=np.int64))
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._places: dict[int, int] = {token: place for place, token in enumerate(self._ids.tolist())}
        self._next = output_start

    def update(self, token_ids: list[int]) -> tuple[Tensor, Tensor]:
        """Distinct ids [K] int64 and their output counts [K] float32, of all of `token_ids` (prompt and output)."""
        for token in token_ids[self._next :]:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._grow()
            self._ids[place] = token
            self._counts[place] += 1
        self._next = len(token_ids)
        size = len(self._places)
        return torch.from_numpy(self._ids[:size]), torch.from_numpy(self._counts[:size])

    def _grow(self) -> None:
        """Double the room; what lies past the tokens known is 0."""
        more = max(64, len(self._ids))
        self._ids = np.pad(self._ids, (0, more))
        self._counts = np.pad(self._counts, (0, more))
