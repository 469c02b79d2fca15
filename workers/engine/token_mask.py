"""The hook by which a grammar restricts what a request may say next."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class TokenMask(Protocol):
    """Allowed next tokens of one completion. It sees every committed token once, in order."""

    def fill(self, bitmask: npt.NDArray[np.int32]) -> None:
        """Write the allowed tokens into `bitmask`, [ceil(vocab_size / 32)] int32: bit t % 32 of word t // 32 is 1."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance past a token that was committed."""
        ...
