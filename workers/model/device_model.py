"""DeepSeek-V3.2 on a device, in reading order, every operation from the table.

Legend: T tokens, D hidden size, N tokens that need logits, V vocabulary, K experts per token.
"""

from __future__ import annotations

import torch

from kernels.dispatch import Operations
from kernels.moe.order import RowGroups
from kernels.norm.rms import Normed
from kernels.quant.scaled import Scaled
from kernels.rope.reference import rotations, yarn_inverse_frequencies
from workers.cache.device_tensors import DeviceCache
from workers.model.attention_form import split_by_form
from workers.model.device_attention import PagedAttention
from workers.model.device_batch import DeviceBatch
from workers.model.device_experts import Experts
from workers.model.device_weights import DeviceMlp, DeviceMoe, DeviceWeights


class DeviceModel:
    """The model of one rank on its device; keeps no state between steps but the cache that it was given."""

    def __init__(self, weights: DeviceWeights, cache: DeviceCache, experts: Experts, operations: Operations) -> None:
        """Raises ConfigError on widths that the kernels do not have."""
        spec = weights.spec
        self._weights = weights
        self._ops = operations
        self._experts = experts
        self._attention = PagedAttention(spec, cache, operations)
        self._frequencies = yarn_inverse_frequencies(spec.rope, spec.qk_rope_head_dim).to(weights.embed.device)

    def forward(self, step: DeviceBatch) -> torch.Tensor:
        """Compute a step: float32 logits [N, V] of `step.logit_tokens_N`. Nothing waits for the device."""
        return self.logits(self.hidden(step))

    @torch.inference_mode()
    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of hidden states: bfloat16 times bfloat16, summed and given in float32."""
        lm_head_VD = self._weights.lm_head
        if x_ND.is_cuda:
            return torch.mm(x_ND, lm_head_VD.t(), out_dtype=torch.float32)
        return x_ND.float() @ lm_head_VD.float().t()

    @torch.inference_mode()
    def hidden(self, step: DeviceBatch) -> torch.Tensor:
        """Compute a step up to the logits: hidden states [N, D] of `step.logit_tokens_N`, after the last norm."""
        weights, spec, ops = self._weights, self._weights.spec, self._ops
        if step.num_tokens == 0:
            return self._serve_experts()
        turns_TP2 = torch.view_as_real(rotations(step.positions_T, self._frequencies, spec.rope)).contiguous()
        alone = ops.single_group(step.num_tokens, weights.embed.device)
        forms = split_by_form(spec, step.pieces, step.num_tokens)
        padding_T1 = step.lengths_T[:, None] == 0 if step.is_filled else None
        residual = weights.embed
        delta: torch.Tensor | None = None
        rows: torch.Tensor | None = step.token_ids_T
        for number, layer in enumerate(weights.layers):
            x = ops.rms_norm(
                residual,
                layer.input_norm,
                spec.rms_norm_eps,
                delta_SD=delta,
                rows_T=rows,
                quantise=layer.attention.qkv_a.is_float8,
            )
            rows = None
            assert x.total is not None, "rows were gathered, or a delta was added"
            delta = self._attention(number, layer.attention, x, step, turns_TP2, forms)
            x = ops.rms_norm(
                x.total, layer.post_norm, spec.rms_norm_eps, delta_SD=delta, quantise=layer.mlp.gate_up.is_float8
            )
            assert x.total is not None
            residual = x.total
            delta = self._feed_forward(x, layer.mlp, alone, padding_T1)
        last = ops.rms_norm(residual, weights.norm, spec.rms_norm_eps, delta_SD=delta, rows_T=step.logit_tokens_N)
        return last.normed

    def _serve_experts(self) -> torch.Tensor:
        """Take part in every expert exchange of a step without tokens of one's own."""
        weights, spec = self._weights, self._weights.spec
        nothing = weights.embed[:0]
        ids_TK = torch.empty(0, spec.experts_per_token, dtype=torch.int64, device=nothing.device)
        for layer in weights.layers:
            if isinstance(layer.mlp, DeviceMoe):
                rows = Scaled(nothing)
                if layer.mlp.gate_up.is_float8:
                    rows = Scaled(*self._ops.quantise_activations(nothing, ue8m0=True))
                self._experts(rows, ids_TK, ids_TK.float(), layer.mlp, None)
        return nothing

    def _feed_forward(
        self, x: Normed, mlp: DeviceMlp | DeviceMoe, alone: RowGroups, padding_T1: torch.Tensor | None
    ) -> torch.Tensor:
        """Output before the residual: [T, D] bfloat16."""
        rows = Scaled(x.codes, x.scales) if x.codes is not None else Scaled(x.normed)
        if isinstance(mlp, DeviceMlp):
            return self._ops.expert_mlps(rows, alone, mlp.gate_up, mlp.down)
        spec = self._weights.spec
        ids_TK, weights_TK = self._ops.gate(
            x.normed,
            mlp.gate,
            mlp.bias,
            experts_per_token=spec.experts_per_token,
            num_groups=spec.num_expert_groups,
            topk_groups=spec.topk_groups,
            normalise=spec.norm_topk_prob,
            scaling=spec.routed_scaling_factor,
        )
        beside_TD = None
        if mlp.shared is not None:
            # the shared expert counts once and is not scaled
            beside_TD = self._ops.expert_mlps(rows, alone, mlp.shared.gate_up, mlp.shared.down)
        return self._experts(rows, ids_TK, weights_TK, mlp, beside_TD, padding_T1)
