"""Routed experts of one layer on a device: where the rows of the tokens meet the weights of their experts.

Legend: T tokens, D hidden size, K experts per token, W ranks, R rows that arrive, B bytes of a record.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baleen.model_spec import QUANT_BLOCK
from kernels.dispatch import Operations
from kernels.moe.record import RecordLayout
from kernels.quant.scaled import Scaled
from workers.model.device_weights import DeviceMoe
from workers.parallel.dispatch import ExpertExchange


class Experts(Protocol):
    """How rows reach the experts of all ranks. Every rank of a group calls it equally often."""

    def __call__(
        self,
        rows_TD: Scaled,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        mlp: DeviceMoe,
        beside_TD: torch.Tensor | None,
        padding_T1: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[T, D] bfloat16: sum over K of weight times the expert's answer, in float32 and in order, then `beside`.

        ids: [T, K] int64, global. weights: [T, K] float32. rows: float8 with scales where the experts are float8.
        padding: [T, 1] bool, which rows mean nothing, in a step that all ranks have filled up to one size; None in any
        other.
        """
        ...


class LocalExperts:
    """All experts are here: no row is copied, and the host knows no counts."""

    def __init__(self, operations: Operations, num_experts: int) -> None:
        self._ops = operations
        self._experts = range(num_experts)

    def __call__(
        self,
        rows_TD: Scaled,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        mlp: DeviceMoe,
        beside_TD: torch.Tensor | None,
        padding_T1: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See Experts."""
        groups = self._ops.order_pairs(ids_TK, self._experts)
        answers_PD = self._ops.expert_mlps(rows_TD, groups, mlp.gate_up, mlp.down, copies=ids_TK.shape[1])
        return self._ops.combine_pairs(answers_PD, weights_TK, beside_TD=beside_TD, dtype=torch.bfloat16)


class ExchangedExperts:
    """Experts of several ranks: rows travel as bytes, float8 with their scales beside them.

    In a step that all ranks have filled up to one size, each row has one record for each rank, in equal parts, and
    comes back as that rank's weighted sum: no shape depends on the routing, the host waits for nothing, and a graph can
    hold it. In any other step each pair of token and expert is a row, and the host learns the counts of every layer:
    what a prompt of thousands of tokens on one rank sends then depends on its routing, not on the number of ranks, and
    ranks without tokens send nothing.
    """

    def __init__(self, operations: Operations, exchange: ExpertExchange) -> None:
        self._ops = operations
        self._exchange = exchange

    def __call__(
        self,
        rows_TD: Scaled,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        mlp: DeviceMoe,
        beside_TD: torch.Tensor | None,
        padding_T1: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See Experts."""
        if padding_T1 is None:
            return self._by_counts(rows_TD, ids_TK, weights_TK, mlp, beside_TD)
        # what fills a step up goes to no expert
        return self._by_records(rows_TD, ids_TK.masked_fill(padding_T1, -1), weights_TK, mlp, beside_TD)

    def _by_records(
        self,
        rows_TD: Scaled,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        mlp: DeviceMoe,
        beside_TD: torch.Tensor | None,
    ) -> torch.Tensor:
        ops, exchange = self._ops, self._exchange
        num_ranks, (num_rows, width) = exchange.world_size, rows_TD.values.shape
        records_WTB = ops.pack_for_ranks(
            rows_TD,
            ids_TK,
            weights_TK,
            num_experts=num_ranks * len(exchange.local_experts),
            num_ranks=num_ranks,
        )
        arrived_RB = exchange.swap(records_WTB).flatten(0, 1)
        layout = RecordLayout(width, ids_TK.shape[1], float8=rows_TD.is_float8)
        rows_RD, ids_RK, weights_RK = ops.unpack_rows(arrived_RB, layout)
        answers_RD = ops.rank_answers(
            rows_RD,
            ids_RK,
            weights_RK,
            exchange.local_experts,
            mlp.gate_up,
            mlp.down,
            expected_pairs=ids_TK.numel(),
        )
        parts_WTD = exchange.swap(answers_RD.view(num_ranks, num_rows, width))
        return ops.sum_parts(parts_WTD, beside_TD=beside_TD, dtype=torch.bfloat16)

    def _by_counts(
        self,
        rows_TD: Scaled,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        mlp: DeviceMoe,
        beside_TD: torch.Tensor | None,
    ) -> torch.Tensor:
        width = rows_TD.values.shape[1]
        sent = rows_TD.values if rows_TD.scales is None else pack_rows(rows_TD)
        received, handle = self._exchange.dispatch(sent, ids_TK, weights_TK)
        rows = received.x_RD
        counts = torch.tensor(received.counts, dtype=torch.int32, device=rows.device)
        groups = self._ops.contiguous_groups(counts, rows.shape[0])
        scaled = Scaled(rows) if rows_TD.scales is None else unpack_rows(rows, width)
        answers = self._ops.expert_mlps(scaled, groups, mlp.gate_up, mlp.down)
        routed_TD = self._exchange.combine(answers, handle)
        if beside_TD is not None:
            routed_TD = routed_TD + beside_TD.float()
        return routed_TD.to(torch.bfloat16)


def experts_over(exchange: ExpertExchange, operations: Operations) -> Experts:
    """Experts of one rank without copies, of several through the exchange."""
    if exchange.world_size == 1:
        return LocalExperts(operations, len(exchange.local_experts))
    return ExchangedExperts(operations, exchange)


def pack_rows(rows_TD: Scaled) -> torch.Tensor:
    """float8 rows and their scales as bytes: uint8 [T, D + D / 32, rounded up to 16]."""
    assert rows_TD.scales is not None
    codes, scales = rows_TD.values.view(torch.uint8), rows_TD.scales.view(torch.uint8)
    packed = torch.cat((codes, scales), dim=1)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 16))


def unpack_rows(packed: torch.Tensor, width: int) -> Scaled:
    """What `pack_rows` packed: the codes are a view of it."""
    scales = packed[:, width : width + width // QUANT_BLOCK * 4].contiguous().view(torch.float32)
    return Scaled(packed[:, :width].view(torch.float8_e4m3fn), scales)
