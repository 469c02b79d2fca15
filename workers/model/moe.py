"""The feed-forward part of a layer: dense, or routed experts beside a shared one.

Legend: T tokens, D hidden size, K experts per token, R rows for this rank's experts.
"""

from __future__ import annotations

import torch

from baleen.model_spec import ModelSpec
from kernels.moe.reference import gate, grouped_mlp, mlp
from workers.model.weights import MlpWeights, MoeWeights
from workers.parallel.dispatch import ExpertExchange


def feed_forward(
    x_TD: torch.Tensor, weights: MlpWeights | MoeWeights, spec: ModelSpec, exchange: ExpertExchange
) -> torch.Tensor:
    """Output before the residual: [T, D] in x's dtype. With routed experts every rank of the group must call it."""
    if isinstance(weights, MlpWeights):
        return mlp(x_TD, weights.gate_up, weights.down)
    expert_ids_TK, expert_weights_TK = gate(
        x_TD,
        weights.gate,
        weights.bias,
        experts_per_token=spec.experts_per_token,
        num_groups=spec.num_expert_groups,
        topk_groups=spec.topk_groups,
        normalise=spec.norm_topk_prob,
        scaling=spec.routed_scaling_factor,
    )
    received, handle = exchange.dispatch(x_TD, expert_ids_TK, expert_weights_TK)
    y_RD = grouped_mlp(received.x_RD, received.counts, weights.gate_up, weights.down)
    routed_TD = exchange.combine(y_RD, handle)
    if weights.shared is not None:
        # the shared expert counts once and is not scaled
        routed_TD = routed_TD + mlp(x_TD, weights.shared.gate_up, weights.shared.down).float()
    return routed_TD.to(x_TD.dtype)
