"""A rank's weights, allocated with the names of what fills them: the structure that all forms have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch

from baleen.model_spec import ModelSpec
from workers.model.names import layer_prefix
from workers.model.weights import AttentionT, MlpT, RankLayer, RankWeights

Places = dict[str, tuple[torch.Tensor, ...]]
"""Stored name to the memory it fills: one view of the stored shape; or several of shape [H, rows, columns], which share
out each head's stored rows in this order."""

WeightsT = TypeVar("WeightsT", bound=RankWeights[Any, Any])


class Allocation(ABC, Generic[WeightsT, AttentionT, MlpT]):
    """Walks the structure once: every tensor is allocated at the line that names what fills it.

    kind: of the weights. dtype: of what has no other. places: of all tensors so far.
    """

    def __init__(
        self,
        kind: type[WeightsT],
        spec: ModelSpec,
        local_experts: range,
        *,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.spec = spec
        self.local_experts = local_experts
        self.places: Places = {}
        self._kind = kind
        self._dtype = dtype
        self._device = device

    def weights(self, fingerprint: bytes) -> WeightsT:
        """All of them, unfilled."""
        spec = self.spec
        table = (spec.vocab_size, spec.hidden_size)
        return self._kind(
            spec=spec,
            embed=self.place("model.embed_tokens.weight", self.empty(*table)),
            layers=tuple(self._layer(layer) for layer in range(spec.num_layers)),
            norm=self.float32("model.norm.weight", spec.hidden_size),
            lm_head=self.place("lm_head.weight", self.empty(*table)),
            local_experts=self.local_experts,
            fingerprint=fingerprint,
        )

    def _layer(self, layer: int) -> RankLayer[AttentionT, MlpT]:
        prefix, spec = layer_prefix(layer), self.spec
        dense = layer < spec.first_dense_layers
        return RankLayer(
            input_norm=self.float32(prefix + "input_layernorm.weight", spec.hidden_size),
            attention=self.attention(prefix + "self_attn."),
            post_norm=self.float32(prefix + "post_attention_layernorm.weight", spec.hidden_size),
            mlp=self.mlp(prefix + "mlp.", spec.intermediate_size) if dense else self.moe(prefix + "mlp."),
        )

    @abstractmethod
    def attention(self, prefix: str) -> AttentionT:
        """One layer's attention."""

    @abstractmethod
    def mlp(self, prefix: str, inner: int) -> MlpT:
        """A dense MLP of so many inner rows."""

    @abstractmethod
    def moe(self, prefix: str) -> MlpT:
        """The gate, this rank's experts, and the shared one."""

    def by_head(self, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
        """kv_b_proj of an attention, by head: w_uk [H, n, C] and w_uv [H, v, C]."""
        spec = self.spec
        w_uk = self.empty(spec.num_heads, spec.qk_nope_head_dim, spec.kv_lora_rank)
        w_uv = self.empty(spec.num_heads, spec.v_head_dim, spec.kv_lora_rank)
        self.places[prefix + "kv_b_proj.weight"] = (w_uk, w_uv)
        return w_uk, w_uv

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory that `place` has to name."""
        return torch.empty(shape, dtype=dtype or self._dtype, device=self._device)

    def float32(self, name: str, *shape: int) -> torch.Tensor:
        """What the stored tensor `name` fills, in float32."""
        return self.place(name, self.empty(*shape, dtype=torch.float32))

    def place(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Note that the stored tensor `name` fills `part`; each fills one."""
        assert name not in self.places, name
        self.places[name] = (part,)
        return part
