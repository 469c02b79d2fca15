"""Gate and experts.

Legend: T tokens, D hidden size, E experts, K experts per token, G groups, R rows grouped by expert, I inner width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.quant.product_reference import float8_product
from kernels.quant.reference import quantise_activations
from kernels.quant.scaled import Scaled


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
    scores, the best groups stay, and the K best biased scores in them win; of equals the lower id. Weights are the
    unbiased scores, normalised and scaled (official demo, `Gate`). The best expert comes first.
    """
    scores_TE = torch.sigmoid(x_TD.float() @ weight_ED.float().t())
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
        kept_Tg = _best(strength_TG, topk_groups)
        dropped_TG = torch.ones_like(strength_TG, dtype=torch.bool).scatter_(1, kept_Tg, False)
        biased_TE = grouped_TGe.masked_fill(dropped_TG[..., None], float("-inf")).flatten(-2)
    ids_TK = _best(biased_TE, experts_per_token)
    weights_TK = scores_TE.gather(1, ids_TK)
    if normalise:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return ids_TK, weights_TK * scaling


def _best(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the `count` largest along the last dimension, the largest first, of equals the lower index."""
    return numbers.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def order_pairs(expert_ids_P: torch.Tensor, local_experts: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of local experts by expert and as they come: (order of them, starts [E], counts [E]), all int32."""
    local_P = expert_ids_P.flatten().long() - local_experts.start
    here_P = (local_P >= 0) & (local_P < len(local_experts))
    counts_E = torch.bincount(local_P[here_P], minlength=len(local_experts))
    by_expert = torch.where(here_P, local_P, len(local_experts)).argsort(stable=True)
    order = by_expert[: int(counts_E.sum())]
    return order.int(), (counts_E.cumsum(0) - counts_E).int(), counts_E.int()


def silu_and_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU of [..., 2 * I] (gate, then up): silu(gate) * up in float32, back in the input's dtype: [..., I]."""
    gate_part, up_part = gate_up.chunk(2, dim=-1)
    if gate_up.dtype == torch.float32:
        return torch.nn.functional.silu(gate_part).mul_(up_part)
    return (torch.nn.functional.silu(gate_part.float()) * up_part.float()).to(gate_up.dtype)


def mlp(x_TD: torch.Tensor, gate_up_ID: torch.Tensor, down_DI: torch.Tensor) -> torch.Tensor:
    """One SwiGLU MLP: gate_up [2 * I, D] (gate rows, then up rows), down [D, I]."""
    return silu_and_multiply(x_TD @ gate_up_ID.t()) @ down_DI.t()


def expert_mlps(
    x_XD: Scaled, expert_of_pair_P: torch.Tensor, gate_up: Scaled, down: Scaled, *, copies: int = 1
) -> torch.Tensor:
    """Each pair's row of x (pair p: row p // copies) through the MLP of its expert: [P, D]; zeros where that is -1.

    gate_up: [E, 2 * I, D], gate rows, then up rows; down: [E, D, I]. Without scales as `mlp`. With scales the products
    are rounded to bfloat16, and what silu and product give is rounded to bfloat16 and then to float8.
    """
    dtype = torch.bfloat16 if x_XD.is_float8 else x_XD.values.dtype
    y_PD = torch.zeros(expert_of_pair_P.numel(), down.values.shape[1], dtype=dtype, device=x_XD.values.device)
    for expert in range(gate_up.values.shape[0]):
        pairs = (expert_of_pair_P.flatten() == expert).nonzero()[:, 0]
        rows, (up_w, down_w) = pairs // copies, (matrix.values[expert] for matrix in (gate_up, down))
        if x_XD.scales is None or gate_up.scales is None or down.scales is None:
            y_PD[pairs] = mlp(x_XD.values[rows], up_w, down_w)
            continue
        both = float8_product(x_XD.values[rows], x_XD.scales[rows], up_w, gate_up.scales[expert])
        hidden, scales = quantise_activations(silu_and_multiply(both), ue8m0=True)
        y_PD[pairs] = float8_product(hidden, scales, down_w, down.scales[expert])
    return y_PD


def combine_pairs(y_PD: torch.Tensor, weights_TK: torch.Tensor, beside_TD: torch.Tensor | None = None) -> torch.Tensor:
    """[T, D] float32: sum over k of weights[t, k] * y[t * K + k], in order, then `beside`. Weight 0: y is not read."""
    total_TD = torch.zeros(weights_TK.shape[0], y_PD.shape[1], device=y_PD.device)
    for weights_T, rows_TD in zip(weights_TK.unbind(1), y_PD.unflatten(0, weights_TK.shape).unbind(1), strict=True):
        total_TD += torch.where(weights_T[:, None] == 0, 0.0, rows_TD.float() * weights_T[:, None])
    return total_TD if beside_TD is None else total_TD + beside_TD.float()


def sum_parts(parts_WTD: torch.Tensor, beside_TD: torch.Tensor | None = None) -> torch.Tensor:
    """[T, D] float32: the sum over w of parts[w, t], in order, then `beside`."""
    total_TD = torch.zeros(parts_WTD.shape[1:], device=parts_WTD.device)
    for part_TD in parts_WTD:
        total_TD += part_TD.float()
    return total_TD if beside_TD is None else total_TD + beside_TD.float()


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
