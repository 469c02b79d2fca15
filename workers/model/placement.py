"""One rank's weights on a CPU, all in the compute dtype: which slice of them each stored tensor fills."""

from __future__ import annotations

import torch

from baleen.model_spec import ModelSpec
from workers.model.allocation import Allocation, Places
from workers.model.weights import AttentionWeights, MlpWeights, MoeWeights, Weights


def allocate_weights(
    spec: ModelSpec, *, local_experts: range, compute_dtype: torch.dtype, fingerprint: bytes
) -> tuple[Weights, Places]:
    """Allocate one rank's weights, unfilled, and say what fills them: each stored tensor once, each number once."""
    allocation = _Allocation(Weights, spec, local_experts, dtype=compute_dtype)
    return allocation.weights(fingerprint), allocation.places


class _Allocation(Allocation[Weights, AttentionWeights, MlpWeights | MoeWeights]):
    """Attention and MLPs as PyTorch computes with them."""

    def attention(self, prefix: str) -> AttentionWeights:
        spec, width = self.spec, self.spec.hidden_size
        w_uk, w_uv = self.by_head(prefix)
        return AttentionWeights(
            qkv_a=self._stacked(
                width,
                (prefix + "q_a_proj.weight", spec.q_lora_rank),
                (prefix + "kv_a_proj_with_mqa.weight", spec.latent_dim),
                (prefix + "indexer.wk.weight", spec.index_head_dim),
            ),
            q_a_norm=self.float32(prefix + "q_a_layernorm.weight", spec.q_lora_rank),
            kv_a_norm=self.float32(prefix + "kv_a_layernorm.weight", spec.kv_lora_rank),
            q_b=self._stacked(
                spec.q_lora_rank,
                (prefix + "q_b_proj.weight", spec.num_heads * spec.qk_head_dim),
                (prefix + "indexer.wq_b.weight", spec.index_heads * spec.index_head_dim),
            ),
            w_uk=w_uk,
            w_uv=w_uv,
            o=self.place(prefix + "o_proj.weight", self.empty(width, spec.num_heads * spec.v_head_dim)),
            index_k_norm_weight=self.float32(prefix + "indexer.k_norm.weight", spec.index_head_dim),
            index_k_norm_bias=self.float32(prefix + "indexer.k_norm.bias", spec.index_head_dim),
            index_weights=self.float32(prefix + "indexer.weights_proj.weight", spec.index_heads, width),
        )

    def mlp(self, prefix: str, inner: int) -> MlpWeights:
        width = self.spec.hidden_size
        return MlpWeights(
            gate_up=self._stacked(width, (prefix + "gate_proj.weight", inner), (prefix + "up_proj.weight", inner)),
            down=self.place(prefix + "down_proj.weight", self.empty(width, inner)),
        )

    def moe(self, prefix: str) -> MoeWeights:
        spec, inner, width = self.spec, self.spec.moe_intermediate_size, self.spec.hidden_size
        gate_up = self.empty(len(self.local_experts), 2 * inner, width)
        down = self.empty(len(self.local_experts), width, inner)
        for local, expert in enumerate(self.local_experts):
            self.place(f"{prefix}experts.{expert}.gate_proj.weight", gate_up[local, :inner])
            self.place(f"{prefix}experts.{expert}.up_proj.weight", gate_up[local, inner:])
            self.place(f"{prefix}experts.{expert}.down_proj.weight", down[local])
        shared = spec.num_shared_experts
        return MoeWeights(
            gate=self.float32(prefix + "gate.weight", spec.num_experts, width),
            bias=self.float32(prefix + "gate.e_score_correction_bias", spec.num_experts),
            gate_up=gate_up,
            down=down,
            shared=self.mlp(prefix + "shared_experts.", inner * shared) if shared else None,
        )

    def _stacked(self, columns: int, *parts: tuple[str, int]) -> torch.Tensor:
        """One matrix whose rows are those of several stored ones, given as name and number of rows."""
        whole = self.empty(sum(rows for _, rows in parts), columns)
        start = 0
        for name, rows in parts:
            self.place(name, whole[start : start + rows])
            start += rows
        return whole
