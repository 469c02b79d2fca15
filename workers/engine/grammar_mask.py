"""The allowed next tokens of one completion by its grammar, and where it may end."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from baleen.sampling import SamplingParams
from baleen.text.grammars import Grammars

_Bits = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]


class GrammarMask:
    """See TokenMask.

    Tokens that end the completion are allowed where the grammar may end, once there are min_tokens of output. Where it
    must end they are allowed at once, and the model's own end also with ignore_eos, so that nothing runs into a wall.
    """

    __slots__ = ("_early", "_end_bit", "_end_word", "_min_tokens", "_num_tokens", "_stop_ids", "_stops", "matcher")

    def __init__(self, matcher: LLMatcher, grammars: Grammars, sampling: SamplingParams) -> None:
        """matcher: at the beginning of the answer, and this mask's own; it writes what `settle` then corrects."""
        self.matcher = matcher
        eos_ids = grammars.eos_token_ids
        self._end_word, self._end_bit = eos_ids[0] // 32, np.uint32(1 << eos_ids[0] % 32).astype(np.int32)
        self._stop_ids = sampling.stop_token_ids.union(eos_ids)
        self._stops = _bits(self._stop_ids)
        self._early = _bits(sampling.stop_token_ids if sampling.ignore_eos else self._stop_ids)
        self._min_tokens = sampling.min_tokens
        self._num_tokens = 0

    @property
    def binds(self) -> bool:
        """See TokenMask."""
        return True

    @property
    def problem(self) -> str:
        """See TokenMask."""
        return self.matcher.get_error().split("\n")[0][:200]

    def fill(self, bitmask: npt.NDArray[np.int32]) -> None:
        """See TokenMask."""
        self.matcher.unsafe_compute_mask_ptr(bitmask.ctypes.data, bitmask.nbytes)
        self.settle(bitmask)

    def settle(self, bitmask: npt.NDArray[np.int32]) -> None:
        """Turn what the matcher wrote into what is allowed."""
        if self.matcher.is_error():
            # the library allows the end then, which would look like a good answer
            bitmask.fill(0)
            return
        may_end = bool(bitmask[self._end_word] & self._end_bit)
        words, bits = self._stops
        bitmask[words] &= ~bits
        if may_end and self._num_tokens >= self._min_tokens:
            early_words, early_bits = self._early
            bitmask[early_words] |= early_bits
        if may_end and not bitmask.any():
            bitmask[words] |= bits

    def accept(self, token_id: int) -> None:
        """See TokenMask."""
        self._num_tokens += 1
        if token_id not in self._stop_ids:
            self.matcher.consume_token(token_id)


def _bits(token_ids: Collection[int]) -> _Bits:
    """Words of a bitmask, each once, and the bits in them that stand for the tokens."""
    words: dict[int, int] = {}
    for token_id in token_ids:
        words[token_id // 32] = words.get(token_id // 32, 0) | 1 << token_id % 32
    bits = np.array([*words.values()], dtype=np.uint32).view(np.int32)
    return np.array([*words], dtype=np.int64), bits
