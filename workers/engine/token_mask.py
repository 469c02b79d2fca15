"""The hook by which a grammar restricts what a request may say next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    # the command line reads this module, and starts in a moment
    import numpy as np
    import numpy.typing as npt


class TokenMask(Protocol):
    """Allowed next tokens of one completion. It sees every committed token once, in order.

    That of a constraint alone says where the completion may end: tokens that end it are allowed there and nowhere else.
    """

    @property
    def binds(self) -> bool:
        """Whether anything is forbidden next; while not, nobody asks for the allowed tokens."""
        ...

    def fill(self, bitmask: npt.NDArray[np.int32]) -> None:
        """Write the allowed tokens into `bitmask`, [ceil(vocab_size / 32)] int32: bit t % 32 of word t // 32 is 1.

        `bitmask` holds zeros before. None is set where nothing can follow any more.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Advance past a token that was committed."""
        ...

    @property
    def problem(self) -> str:
        """Why nothing can follow any more; empty if there is no particular cause."""
        ...
