"""DeepSeek-V3.2 in reading order: embedding, layers of attention and feed-forward, final norm, logits.

Legend: T tokens, D hidden size, N tokens that need logits, V vocabulary.
"""

from __future__ import annotations

import torch

from baleen.config import AttentionForm
from kernels.norm.reference import add_rms_norm, rms_norm
from kernels.rope.reference import rotations, yarn_inverse_frequencies
from workers.cache.tensors import CacheTensors
from workers.model.attention import Attention
from workers.model.forward import ForwardBatch
from workers.model.moe import feed_forward
from workers.model.weights import Weights
from workers.parallel.dispatch import ExpertExchange


class DeepseekV32:
    """The model of one rank: full attention weights, its own share of the routed experts, its own cache."""

    def __init__(
        self, weights: Weights, cache: CacheTensors, exchange: ExpertExchange, *, attention_form: AttentionForm
    ) -> None:
        self._weights = weights
        self._exchange = exchange
        self._attention = Attention(weights.spec, cache, attention_form)
        self._inverse_frequencies = yarn_inverse_frequencies(weights.spec.rope, weights.spec.qk_rope_head_dim)

    def forward(self, step: ForwardBatch) -> torch.Tensor:
        """Compute a step and return float32 logits [N, V] of `step.logit_tokens_N`; see `hidden`."""
        return self.logits(self.hidden(step))

    @torch.inference_mode()
    def logits(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V] of hidden states."""
        if not x_ND.shape[0]:
            return torch.empty(0, self._weights.spec.vocab_size)
        return x_ND.float() @ self._weights.lm_head.float().t()

    @torch.inference_mode()
    def hidden(self, step: ForwardBatch) -> torch.Tensor:
        """Compute a step up to the logits: hidden states [N, D] of `step.logit_tokens_N`, after the last norm.

        With expert parallelism all ranks call this together, one with no tokens too: it serves its experts.
        """
        weights, spec = self._weights, self._weights.spec
        if step.num_tokens == 0:
            return self._serve_experts()
        rotations_TP = rotations(step.positions_T, self._inverse_frequencies, spec.rope)
        residual_TD = weights.embed[step.token_ids_T]
        delta_TD: torch.Tensor | None = None
        for number, layer in enumerate(weights.layers):
            if delta_TD is None:
                x_TD = rms_norm(residual_TD, layer.input_norm, spec.rms_norm_eps)
            else:
                x_TD, residual_TD = add_rms_norm(delta_TD, residual_TD, layer.input_norm, spec.rms_norm_eps)
            delta_TD = self._attention(number, layer.attention, x_TD, step, rotations_TP)
            x_TD, residual_TD = add_rms_norm(delta_TD, residual_TD, layer.post_norm, spec.rms_norm_eps)
            delta_TD = feed_forward(x_TD, layer.mlp, spec, self._exchange)
        assert delta_TD is not None, "a model has layers"
        wanted = step.logit_tokens_N
        x_ND, _ = add_rms_norm(delta_TD[wanted], residual_TD[wanted], weights.norm, spec.rms_norm_eps)
        return x_ND

    def _serve_experts(self) -> torch.Tensor:
        """Take part in every expert exchange of a step without tokens of one's own."""
        weights = self._weights
        nothing_TD = weights.embed.new_empty(0, weights.spec.hidden_size)
        if self._exchange.world_size > 1:
            for layer in weights.layers:
                feed_forward(nothing_TD, layer.mlp, weights.spec, self._exchange)
        return nothing_TD
