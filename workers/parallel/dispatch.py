"""The contract of expert parallelism: send tokens to the ranks that hold their experts, and bring the answers back.

`dispatch` and `combine` send what there is, and the host learns how much that is. `swap` sends equal parts, whatever is
in them, and nothing waits: a CUDA graph can hold it.

Legend: T tokens of this rank, K experts per token, D hidden size, R rows received (token and expert pairs).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Received:
    """Rows for this rank's experts, grouped by local expert in ascending order.

    x_RD: [R, D] in the dtype that was dispatched. counts: rows per local expert; they sum to R.
    """

    x_RD: torch.Tensor
    counts: tuple[int, ...]


class ExpertExchange(Protocol):
    """Every rank of a group calls dispatch and combine equally often, with any number of tokens, none included.

    And swap equally often, with parts of one shape.
    """

    world_size: int
    local_experts: range
    """Global ids of the experts that this rank holds."""

    def dispatch(
        self, x_TD: torch.Tensor, expert_ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, Any]:
        """Send each token to its experts. expert_ids int64 global ids, weights float32.

        Returns the rows that arrived and a frozen handle for `combine`.
        """
        ...

    def combine(self, y_RD: torch.Tensor, handle: Any) -> torch.Tensor:
        """Bring expert outputs back: [T, D] float32, sum over K of weight times output, in slot order.

        y_RD: the experts' outputs in the order of `Received.x_RD`.
        """
        ...

    def swap(self, parts_W: torch.Tensor) -> torch.Tensor:
        """Part w of `parts` goes to rank w; returns what each rank had for this one, in the order of ranks.

        parts: [W, ...], contiguous and not float8; so is what is returned.
        """
        ...

    def waiting(self, num_replayed: int) -> AbstractContextManager[None]:
        """Around a wait for the device, and so for the swaps queued for it; bounded as other collectives are.

        num_replayed: swaps since the last wait that were replayed, and not called.
        """
        ...
