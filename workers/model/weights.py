"""The structure of one rank's weights in memory: what all forms of them have, and the form that PyTorch computes with.

Legend: D hidden size, V vocabulary, H heads, E experts, L experts of this rank, I inner width of an MLP, N index heads,
X index head width, Q query latent, C key-value latent, R rotated width, n unrotated width, v value width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from baleen.model_spec import ModelSpec

AttentionT = TypeVar("AttentionT")
MlpT = TypeVar("MlpT")


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """One layer's attention and indexer. Norms and index_weights are float32, the rest has the compute dtype.

    qkv_a: [Q + C + R + X, D], rows of q_a_proj, kv_a_proj_with_mqa (latent, then rotated key) and indexer.wk.
    q_b: [H*(n + R) + N*X, Q], rows of q_b_proj and indexer.wq_b. w_uk: [H, n, C] and w_uv: [H, v, C], kv_b_proj by
    head. o: [D, H*v]. index_weights: [N, D]. q_a_norm [Q], kv_a_norm [C], index_k_norm_weight, index_k_norm_bias [X].
    """

    qkv_a: torch.Tensor
    q_a_norm: torch.Tensor
    kv_a_norm: torch.Tensor
    q_b: torch.Tensor
    w_uk: torch.Tensor
    w_uv: torch.Tensor
    o: torch.Tensor
    index_k_norm_weight: torch.Tensor
    index_k_norm_bias: torch.Tensor
    index_weights: torch.Tensor


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """gate_up: [2*I, D], gate rows then up rows. down: [D, I]. Both in the compute dtype."""

    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """gate: [E, D] float32. bias: [E] float32. gate_up: [L, 2*I, D]. down: [L, D, I]. shared: None without any."""

    gate: torch.Tensor
    bias: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    shared: MlpWeights | None


@dataclass(frozen=True, slots=True)
class RankLayer(Generic[AttentionT, MlpT]):
    """One layer. input_norm and post_norm: [D] float32."""

    input_norm: torch.Tensor
    attention: AttentionT
    post_norm: torch.Tensor
    mlp: MlpT


@dataclass(frozen=True, slots=True)
class RankWeights(Generic[AttentionT, MlpT]):
    """All weights of one rank, in the form of whoever computes with them. embed and lm_head: [V, D]. norm: [D] float32.

    local_experts: global ids of the experts held here. fingerprint: names the checkpoint, the same on every rank.
    """

    spec: ModelSpec
    embed: torch.Tensor
    layers: tuple[RankLayer[AttentionT, MlpT], ...]
    norm: torch.Tensor
    lm_head: torch.Tensor
    local_experts: range
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Weights(RankWeights[AttentionWeights, MlpWeights | MoeWeights]):
    """What PyTorch computes with; embed and lm_head have the compute dtype."""
