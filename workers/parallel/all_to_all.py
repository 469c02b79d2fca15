"""Expert parallelism of many ranks: tokens travel by all-to-all, one copy for each (token, expert) pair.

Experts are split into contiguous ranges, so pairs sorted by expert are also sorted by the rank that they go to.

Legend: T tokens of this rank, K experts per token, P = T * K pairs sent, R rows received, D hidden size, E experts of
the model, W ranks of the group, L = E / W experts of a rank.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from baleen.errors import ConfigError
from workers.parallel.collectives import Collectives
from workers.parallel.dispatch import Received
from workers.parallel.rows import pairs_by_expert, restore, sum_slots, take_rows


@dataclass(frozen=True, slots=True)
class AllToAllHandle:
    """What `combine` needs to know about one `dispatch`.

    order_P: the pair that each sent row came from. grouping_R: the place, among the rows as they arrived, of each row
    handed to the experts. sent and arrived: rows exchanged with each rank.
    """

    order_P: torch.Tensor
    grouping_R: torch.Tensor
    weights_TK: torch.Tensor
    sent: list[int]
    arrived: list[int]


class AllToAllExchange:
    """An `ExpertExchange` over a group of ranks; keeps nothing between calls."""

    def __init__(self, num_experts: int, *, rank: int, collectives: Collectives) -> None:
        """Raises ConfigError unless the group's ranks divide the experts."""
        self.world_size = collectives.world_size
        if num_experts % self.world_size:
            raise ConfigError(f"parallel.world_size is {self.world_size}, must divide the {num_experts} experts")
        share = num_experts // self.world_size
        self.local_experts = range(rank * share, (rank + 1) * share)
        self._num_experts = num_experts
        self._collectives = collectives

    def dispatch(
        self, x_TD: torch.Tensor, expert_ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> tuple[Received, AllToAllHandle]:
        """See `ExpertExchange.dispatch`; rows of an expert are ordered by source rank, then token. Raises EpochEnded.

        Two exchanges: how many rows go from each rank to each expert, then the rows.
        """
        order_P, sent_E = pairs_by_expert(expert_ids_TK, self._num_experts)
        arriving_E = torch.empty_like(sent_E)
        self._collectives.all_to_all(arriving_E, sent_E)
        both = self._collectives.to_host(torch.stack((sent_E, arriving_E)))
        sent_WL, arriving_WL = both.reshape(2, self.world_size, -1)
        sent, arrived = sent_WL.sum(axis=1).tolist(), arriving_WL.sum(axis=1).tolist()

        rows_PD = take_rows(x_TD, order_P, expert_ids_TK.shape[1])
        arrived_RD = rows_PD.new_empty((sum(arrived), rows_PD.shape[1]))
        self._collectives.all_to_all(arrived_RD, rows_PD, arrived, sent)

        grouping_R = self._group_by_expert(arriving_E, num_rows=sum(arrived))
        received = Received(arrived_RD.index_select(0, grouping_R), tuple(arriving_WL.sum(axis=0).tolist()))
        return received, AllToAllHandle(order_P, grouping_R, weights_TK, sent, arrived)

    def _group_by_expert(self, arriving_E: torch.Tensor, *, num_rows: int) -> torch.Tensor:
        """Rows arrive by source, then expert; return the int64 [R] order that puts the expert first."""
        experts_L = torch.arange(len(self.local_experts), device=arriving_E.device)
        expert_of_row_R = torch.repeat_interleave(experts_L.repeat(self.world_size), arriving_E, output_size=num_rows)
        return torch.argsort(expert_of_row_R, stable=True)

    def combine(self, y_RD: torch.Tensor, handle: AllToAllHandle) -> torch.Tensor:
        """See `ExpertExchange.combine`. Raises EpochEnded."""
        as_arrived_RD = restore(y_RD, handle.grouping_R)
        returned_PD = y_RD.new_empty((sum(handle.sent), y_RD.shape[1]))
        self._collectives.all_to_all(returned_PD, as_arrived_RD, handle.sent, handle.arrived)
        return sum_slots(restore(returned_PD, handle.order_P), handle.weights_TK)

    def swap(self, parts_W: torch.Tensor) -> torch.Tensor:
        """See `ExpertExchange.swap`. Raises EpochEnded."""
        arrived_W = torch.empty_like(parts_W)
        self._collectives.all_to_all(arrived_W, parts_W)
        return arrived_W

    def waiting(self, num_replayed: int) -> AbstractContextManager[None]:
        """See `ExpertExchange.waiting`. Raises EpochEnded."""
        return self._collectives.waiting(num_replayed)
