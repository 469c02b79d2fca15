"""What has a text come in a completion once its budget of tokens is spent: thinking that does not end by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from baleen.budget import Budget
from baleen.text.tokenizer import Tokenizer
from workers.engine.token_mask import TokenMask

_MOST_OVER = 3
"""Tokens that may finish a character after the budget: it has 4 bytes at most."""


class BudgetMask:
    """See TokenMask. It allows everything, or what the other mask does, but where the text has to come."""

    def __init__(self, budget: Budget, tokenizer: Tokenizer, other: TokenMask | None = None) -> None:
        """other: of the completion's constraint, if it has one."""
        self._budget = budget
        self._tokenizer = tokenizer
        self._other = other
        self._ends = [text.encode() for text in (budget.end, budget.unless) if text]
        self._end_ids = tokenizer.encode(budget.end)
        self._num_tokens = 0
        self._num_given = 0
        # its last bytes, as many as a beginning of a text or of a character can have
        self._tail = b""
        self._tail_bytes = max(3, *(len(text) - 1 for text in self._ends))
        self._has_come = False

    @property
    def binds(self) -> bool:
        """See TokenMask."""
        return self._is_due or (self._other is not None and self._other.binds)

    @property
    def problem(self) -> str:
        """See TokenMask."""
        return self._other.problem if self._other is not None else ""

    def fill(self, bitmask: npt.NDArray[np.int32]) -> None:
        """See TokenMask."""
        if self._other is not None and self._other.binds:
            self._other.fill(bitmask)
        else:
            bitmask.fill(-1)
        if self._is_due:
            token_id = self._end_ids[self._num_given]
            word, bit = token_id // 32, np.uint32(1 << token_id % 32).astype(np.int32)
            # a constraint may ask for something else first
            if bitmask[word] & bit:
                bitmask.fill(0)
                bitmask[word] = bit

    def accept(self, token_id: int) -> None:
        """See TokenMask."""
        if self._other is not None:
            self._other.accept(token_id)
        if self._has_come:
            return
        self._num_given = self._num_given + 1 if self._is_due and token_id == self._end_ids[self._num_given] else 0
        self._num_tokens += 1
        tail = self._tail + self._tokenizer.token_bytes(token_id)
        self._has_come = any(text in tail for text in self._ends)
        self._tail = tail[-self._tail_bytes :]

    @property
    def _is_due(self) -> bool:
        over = self._num_tokens - self._budget.tokens
        if self._has_come or over < 0:
            return False
        waits = _is_cut(self._tail) and (self._other is not None or over < _MOST_OVER)
        return self._num_given > 0 or not waits


def _is_cut(text: bytes) -> bool:
    """Whether bytes of UTF-8 end within a character."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 == 0xC0:
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False
