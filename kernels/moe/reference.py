"""Gate and experts.

Legend: T tokens, D hidden size, E experts, K experts per token, G groups, R rows grouped by expert, I inner width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def gate(
    x_TD: torch.Tensor,
    weight_ED: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    experts_per_token: int,
    num_groups: int,
    topk_groups: int,
    normalise: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts: (ids [T, K] int64, weights [T, K] float32).

    Sigmoid scores in float32. The bias takes part in the choice only: a group counts the sum of its two best biased
    scores, the best groups stay, and the K best biased scores in them win. Weights are the unbiased scores, normalised
    and scaled (official demo, `Gate`).
    """
    scores_TE = torch.sigmoid(x_TD.float() @ weight_ED.t())
    return choose_experts(
        scores_TE,
        bias_E,
        experts_per_token=experts_per_token,
        num_groups=num_groups,
        topk_groups=topk_groups,
        normalise=normalise,
        scaling=scaling,
    )


def choose_experts(
    scores_TE: torch.Tensor,
    bias_E: torch.Tensor,
    *,
    experts_per_token: int,
    num_groups: int,
    topk_groups: int,
    normalise: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`gate` from its sigmoid scores on."""
    biased_TE = scores_TE + bias_E
    if topk_groups < num_groups:
        grouped_TGe = biased_TE.unflatten(-1, (num_groups, -1))
        strength_TG = grouped_TGe.topk(2, dim=-1).values.sum(-1)
        kept_Tg = strength_TG.topk(topk_groups, dim=-1, sorted=False).indices
        dropped_TG = torch.ones_like(strength_TG, dtype=torch.bool).scatter_(1, kept_Tg, False)
        biased_TE = grouped_TGe.masked_fill(dropped_TG[..., None], float("-inf")).flatten(-2)
    ids_TK = biased_TE.topk(experts_per_token, dim=-1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    if normalise:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return ids_TK, weights_TK * scaling


def silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU of [..., 2 * I] (gate, then up): silu(gate) * up in float32, back in the input's dtype: [..., I]."""
    gate_part, up_part = gate_up.chunk(2, dim=-1)
    if gate_up.dtype == torch.float32:
        return torch.nn.functional.silu(gate_part).mul_(up_part)
    return (torch.nn.functional.silu(gate_part.float()) * up_part.float()).to(gate_up.dtype)


def mlp(x_TD: torch.Tensor, gate_up_ID: torch.Tensor, down_DI: torch.Tensor) -> torch.Tensor:
    """One SwiGLU MLP: gate_up [2 * I, D] (gate rows, then up rows), down [D, I]."""
    return silu_and_multiply(x_TD @ gate_up_ID.t()) @ down_DI.t()


def grouped_mlp(
    x_RD: torch.Tensor, counts: Sequence[int], gate_up_EID: torch.Tensor, down_EDI: torch.Tensor
) -> torch.Tensor:
    """Each expert's MLP on its own rows: x [R, D] grouped by expert, counts per expert summing to R; returns [R, D]."""
    y_RD = torch.empty_like(x_RD)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            end = start + count
            hidden_RI = silu_and_multiply(x_RD[start:end] @ gate_up_EID[expert].t())
            torch.mm(hidden_RI, down_EDI[expert].t(), out=y_RD[start:end])
            start = end
    return y_RD
