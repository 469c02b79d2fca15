"""The masks of a step as one packed array, all grammars worked out together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor

from workers.engine.grammar_mask import GrammarMask
from workers.engine.token_mask import TokenMask

TOGETHER = 16
"""Grammars from which on several threads are worth their start."""

MOST_THREADS = 8


class Bitmasks:
    """Owner of the array. Its threads start with the first step that needs them."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._bitmask_RW: npt.NDArray[np.int32] = np.zeros((0, self._num_words), dtype=np.int32)
        self._executor: LLExecutor | None = None

    def fill(self, masks: Sequence[TokenMask]) -> npt.NDArray[np.int32]:
        """Allowed tokens of each mask, [len(masks), words] int32, valid until the next call; see TokenMask.fill."""
        if len(self._bitmask_RW) < len(masks):
            self._bitmask_RW = np.zeros((len(masks), self._num_words), dtype=np.int32)
        filled_RW = self._bitmask_RW[: len(masks)]
        filled_RW.fill(0)
        grammars = [(mask, place) for place, mask in enumerate(masks) if isinstance(mask, GrammarMask)]
        if len(grammars) < TOGETHER:
            for place, mask in enumerate(masks):
                mask.fill(filled_RW[place])
            return filled_RW
        if self._executor is None:
            self._executor = LLExecutor(num_threads=min(MOST_THREADS, len(os.sched_getaffinity(0))))
        matchers = [(mask.matcher, place) for mask, place in grammars]
        self._executor.unsafe_compute_mask_ptr(matchers, filled_RW.ctypes.data, 4 * self._num_words, len(masks))
        for place, mask in enumerate(masks):
            if isinstance(mask, GrammarMask):
                mask.settle(filled_RW[place])
            else:
                mask.fill(filled_RW[place])
        return filled_RW
