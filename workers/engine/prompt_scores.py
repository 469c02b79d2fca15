"""Which log-probabilities of a prompt are still to be reported: each place once, whatever is computed again. No torch.

The logits of a token are of the next one. So the tokens that a step computes give the log-probabilities of those one
place further on, and a prefix that is found computed gives none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baleen.blocks import BLOCK_TOKENS

NOTHING = range(0)
"""The places of an item of which nothing is to be reported."""


@dataclass(slots=True, eq=False)
class PromptScores:
    """What is left to report of one prompt; all completions of a submission share it, as they share the prompt.

    prompt_ids: all of it, also where a request computes only a part. num_top: of the most likely tokens at each place.
    next: place of the first token that was not reported; 0 is taken for 1, since the first token has none.
    """

    prompt_ids: Sequence[int]
    num_top: int
    next: int = 0

    def __post_init__(self) -> None:
        self.next = max(1, self.next)

    @property
    def num_readable_blocks(self) -> int | None:
        """Most leading blocks that nobody needs to compute for what is left; None: all."""
        return (self.next - 1) // BLOCK_TOKENS if self.next < len(self.prompt_ids) else None

    def places(self, start: int, num_tokens: int) -> range:
        """The places whose log-probabilities the tokens from `start` on give, of those that are left."""
        found = range(max(start + 1, self.next), min(start + num_tokens + 1, len(self.prompt_ids)))
        return found if found else NOTHING

    def reported(self, places: range) -> None:
        """These were reported; they are the next ones."""
        assert places.start == self.next
        self.next = places.stop
