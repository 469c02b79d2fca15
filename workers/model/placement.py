"""Which slice of a rank's weights each stored tensor fills: the only place that knows both names and structure."""

from __future__ import annotations

import torch

from baleen.model_spec import ModelSpec
from workers.model.names import layer_prefix
from workers.model.weights import AttentionWeights, LayerWeights, MlpWeights, MoeWeights, Weights

Places = dict[str, tuple[torch.Tensor, ...]]
"""Stored name to the memory it fills: one view of the stored shape; or several of shape [H, rows, columns], which share
out each head's stored rows in this order."""


def allocate_weights(
    spec: ModelSpec, *, local_experts: range, compute_dtype: torch.dtype, fingerprint: bytes
) -> tuple[Weights, Places]:
    """Allocate one rank's weights, unfilled, and say what fills them: each stored tensor once, each number once."""
    allocation = _Allocation(spec, local_experts, compute_dtype)
    return allocation.weights(fingerprint), allocation.places


class _Allocation:
    """Walks the structure once: every tensor is allocated at the line that names what fills it."""

    def __init__(self, spec: ModelSpec, local_experts: range, compute_dtype: torch.dtype) -> None:
        self.spec = spec
        self.local_experts = local_experts
        self.compute_dtype = compute_dtype
        self.places: Places = {}

    def weights(self, fingerprint: bytes) -> Weights:
        spec = self.spec
        table = (spec.vocab_size, spec.hidden_size)
        return Weights(
            spec=spec,
            embed=self._place("model.embed_tokens.weight", self._empty(*table)),
            layers=tuple(self._layer(layer) for layer in range(spec.num_layers)),
            norm=self._float32("model.norm.weight", spec.hidden_size),
            lm_head=self._place("lm_head.weight", self._empty(*table)),
            local_experts=self.local_experts,
            fingerprint=fingerprint,
        )

    def _layer(self, layer: int) -> LayerWeights:
        prefix, spec = layer_prefix(layer), self.spec
        dense = layer < spec.first_dense_layers
        return LayerWeights(
            input_norm=self._float32(prefix + "input_layernorm.weight", spec.hidden_size),
            attention=self._attention(prefix + "self_attn."),
            post_norm=self._float32(prefix + "post_attention_layernorm.weight", spec.hidden_size),
            mlp=self._mlp(prefix + "mlp.", spec.intermediate_size) if dense else self._moe(prefix + "mlp."),
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        spec, width = self.spec, self.spec.hidden_size
        key_rows, value_rows = spec.qk_nope_head_dim, spec.v_head_dim
        w_uk = self._empty(spec.num_heads, key_rows, spec.kv_lora_rank)
        w_uv = self._empty(spec.num_heads, value_rows, spec.kv_lora_rank)
        self.places[prefix + "kv_b_proj.weight"] = (w_uk, w_uv)
        return AttentionWeights(
            qkv_a=self._stacked(
                width,
                (prefix + "q_a_proj.weight", spec.q_lora_rank),
                (prefix + "kv_a_proj_with_mqa.weight", spec.latent_dim),
                (prefix + "indexer.wk.weight", spec.index_head_dim),
            ),
            q_a_norm=self._float32(prefix + "q_a_layernorm.weight", spec.q_lora_rank),
            kv_a_norm=self._float32(prefix + "kv_a_layernorm.weight", spec.kv_lora_rank),
            q_b=self._stacked(
                spec.q_lora_rank,
                (prefix + "q_b_proj.weight", spec.num_heads * spec.qk_head_dim),
                (prefix + "indexer.wq_b.weight", spec.index_heads * spec.index_head_dim),
            ),
            w_uk=w_uk,
            w_uv=w_uv,
            o=self._place(prefix + "o_proj.weight", self._empty(width, spec.num_heads * value_rows)),
            index_k_norm_weight=self._float32(prefix + "indexer.k_norm.weight", spec.index_head_dim),
            index_k_norm_bias=self._float32(prefix + "indexer.k_norm.bias", spec.index_head_dim),
            index_weights=self._float32(prefix + "indexer.weights_proj.weight", spec.index_heads, width),
        )

    def _mlp(self, prefix: str, inner: int) -> MlpWeights:
        width = self.spec.hidden_size
        return MlpWeights(
            gate_up=self._stacked(width, (prefix + "gate_proj.weight", inner), (prefix + "up_proj.weight", inner)),
            down=self._place(prefix + "down_proj.weight", self._empty(width, inner)),
        )

    def _moe(self, prefix: str) -> MoeWeights:
        spec, inner, width = self.spec, self.spec.moe_intermediate_size, self.spec.hidden_size
        gate_up = self._empty(len(self.local_experts), 2 * inner, width)
        down = self._empty(len(self.local_experts), width, inner)
        for local, expert in enumerate(self.local_experts):
            self._place(f"{prefix}experts.{expert}.gate_proj.weight", gate_up[local, :inner])
            self._place(f"{prefix}experts.{expert}.up_proj.weight", gate_up[local, inner:])
            self._place(f"{prefix}experts.{expert}.down_proj.weight", down[local])
        shared = spec.num_shared_experts
        return MoeWeights(
            gate=self._float32(prefix + "gate.weight", spec.num_experts, width),
            bias=self._float32(prefix + "gate.e_score_correction_bias", spec.num_experts),
            gate_up=gate_up,
            down=down,
            shared=self._mlp(prefix + "shared_experts.", inner * shared) if shared else None,
        )

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.compute_dtype)

    def _float32(self, name: str, *shape: int) -> torch.Tensor:
        return self._place(name, torch.empty(shape, dtype=torch.float32))

    def _place(self, name: str, part: torch.Tensor) -> torch.Tensor:
        assert name not in self.places, name
        self.places[name] = (part,)
        return part

    def _stacked(self, columns: int, *parts: tuple[str, int]) -> torch.Tensor:
        """One matrix whose rows are those of several stored ones, given as name and number of rows."""
        whole = self._empty(sum(rows for _, rows in parts), columns)
        start = 0
        for name, rows in parts:
            self._place(name, whole[start : start + rows])
            start += rows
        return whole
