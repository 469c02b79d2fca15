"""Routed experts of one layer on a device: where the rows of the tokens meet the weights of their experts.

Legend: T tokens, D hidden size, K experts per token.
"""

from __future__ import annotations

from typing import Protocol

import torch

from baleen.model_spec import QUANT_BLOCK
from kernels.dispatch import Operations
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
    ) -> torch.Tensor:
        """[T, D] bfloat16: sum over K of weight times the expert's answer, in float32 and in order, then `beside`.

        ids: [T, K] int64, global. weights: [T, K] float32. rows: float8 with scales where the experts are float8.
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
    ) -> torch.Tensor:
        """See Experts."""
        groups = self._ops.order_pairs(ids_TK, self._experts)
        answers_PD = self._ops.expert_mlps(rows_TD, groups, mlp.gate_up, mlp.down, copies=ids_TK.shape[1])
        return self._ops.combine_pairs(answers_PD, weights_TK, beside_TD=beside_TD, dtype=torch.bfloat16)


class ExchangedExperts:
    """Experts of several ranks: rows travel as bytes, float8 with their scales beside them, one for each pair.

    The host learns the counts of every layer, so such a step is not captured in a graph.
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
    ) -> torch.Tensor:
        """See Experts."""
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
