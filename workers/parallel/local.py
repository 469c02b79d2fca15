"""Expert parallelism of one rank: every expert is here. The oracle of `all_to_all`.

Legend: T tokens, K experts per token, P = T * K pairs, D hidden size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from workers.parallel.dispatch import Received
from workers.parallel.rows import pairs_by_expert, restore, sum_slots, take_rows


@dataclass(frozen=True, slots=True)
class LocalHandle:
    """What `combine` needs to know about one `dispatch`."""

    order_P: torch.Tensor
    weights_TK: torch.Tensor


class LocalExchange:
    """An `ExpertExchange` that holds all experts and sends nothing anywhere."""

    def __init__(self, num_experts: int) -> None:
        self.world_size = 1
        self.local_experts = range(num_experts)

    def dispatch(
        self, x_TD: torch.Tensor, expert_ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, LocalHandle]:
        """See `ExpertExchange.dispatch`; rows of an expert are in token order."""
        order_P, counts_E = pairs_by_expert(expert_ids_TK, len(self.local_experts))
        rows_PD = take_rows(x_TD, order_P, expert_ids_TK.shape[1])
        return Received(rows_PD, tuple(counts_E.tolist())), LocalHandle(order_P, weights_TK)

    def combine(self, y_RD: torch.Tensor, handle: LocalHandle) -> torch.Tensor:
        """See `ExpertExchange.combine`."""
        return sum_slots(restore(y_RD, handle.order_P), handle.weights_TK)

    def swap(self, parts_W: torch.Tensor) -> torch.Tensor:
        """See `ExpertExchange.swap`; the one part is this rank's own."""
        return parts_W

    def waiting(self, num_replayed: int) -> AbstractContextManager[None]:
        """See `ExpertExchange.waiting`; nobody else is waited for."""
        return nullcontext()
