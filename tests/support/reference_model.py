"""DeepSeek-V3.2 once more, written plainly and apart from the engine: one sequence, no cache, no batches, no blocks.

Multi-head form, a full square of scores, Python loops over tokens and experts. It is the oracle of the engine's
formats, where the goldens say nothing (packed float8 cache), and of odd sizes. Weights are a dict of checkpoint names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from baleen.model_spec import ModelSpec


@dataclass
class Trace:
    """What the reference saw: selected[layer][position] and experts[layer][position] as sets; hidden[layer]: [T, D]."""

    selected: dict[int, list[set[int]]] = field(default_factory=dict)
    experts: dict[int, list[dict[int, float]]] = field(default_factory=dict)
    hidden: list[torch.Tensor] = field(default_factory=list)


def fake_float8(x: torch.Tensor) -> torch.Tensor:
    """Round groups of 128 to float8 with a power-of-two scale and back."""
    groups = x.reshape(*x.shape[:-1], -1, 128)
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(amax / 448)))
    return ((groups / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale).reshape(x.shape)


def sylvester(n: int) -> torch.Tensor:
    """Hadamard matrix by the parity of the bits that two indices share."""
    signs = [[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)]
    return torch.tensor(signs) / math.sqrt(n)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


class ReferenceModel:
    """float8_cache: round what the packed cache would hold, and quantise index queries and keys."""

    def __init__(self, spec: ModelSpec, weights: dict[str, torch.Tensor], *, float8_cache: bool = False) -> None:
        self.spec = spec
        self.weights = weights
        self.float8_cache = float8_cache

    def forward(self, token_ids: list[int]) -> tuple[torch.Tensor, Trace]:
        """Logits of every position, [T, vocab], and the trace."""
        spec, trace = self.spec, Trace()
        h = self.weights["model.embed_tokens.weight"][token_ids].float()
        trace.hidden.append(h)
        for layer in range(spec.num_layers):
            prefix = f"model.layers.{layer}."
            h = h + self._attention(layer, rms(h, self._w(prefix + "input_layernorm"), spec.rms_norm_eps), trace)
            x = rms(h, self._w(prefix + "post_attention_layernorm"), spec.rms_norm_eps)
            dense = layer < spec.first_dense_layers
            h = h + (self._mlp(prefix + "mlp.", x) if dense else self._moe(layer, x, trace))
            trace.hidden.append(h)
        h = rms(h, self._w("model.norm"), spec.rms_norm_eps)
        return h @ self._w("lm_head").t(), trace

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Continue greedily, recomputing everything for each token."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.forward(tokens)[0][-1].argmax()))
        return tokens[len(prompt) :]

    def _w(self, name: str) -> torch.Tensor:
        return self.weights[name + ".weight"].float()

    def _mlp(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        gate, up = x @ self._w(prefix + "gate_proj").t(), x @ self._w(prefix + "up_proj").t()
        return (gate * torch.sigmoid(gate) * up) @ self._w(prefix + "down_proj").t()

    def _moe(self, layer: int, x: torch.Tensor, trace: Trace) -> torch.Tensor:
        spec, prefix = self.spec, f"model.layers.{layer}.mlp."
        scores = torch.sigmoid(x @ self._w(prefix + "gate").t())
        biased = scores + self.weights[prefix + "gate.e_score_correction_bias"]
        size = spec.num_experts // spec.num_expert_groups
        out, chosen_by_token = [], []
        for token in range(x.shape[0]):
            row = biased[token].tolist()
            strength = [sum(sorted(row[g * size : (g + 1) * size])[-2:]) for g in range(spec.num_expert_groups)]
            kept = sorted(range(len(strength)), key=strength.__getitem__)[-spec.topk_groups :]
            allowed = [e for e in range(spec.num_experts) if e // size in kept]
            chosen = sorted(allowed, key=row.__getitem__)[-spec.experts_per_token :]
            total = sum(float(scores[token, e]) for e in chosen) if spec.norm_topk_prob else 1.0
            shares = {e: float(scores[token, e]) / total * spec.routed_scaling_factor for e in chosen}
            chosen_by_token.append(shares)
            y = sum(share * self._mlp(f"{prefix}experts.{e}.", x[token]) for e, share in shares.items())
            out.append(y + self._mlp(prefix + "shared_experts.", x[token]))
        trace.experts[layer] = chosen_by_token
        return torch.stack(out)

    def _rotate(self, x: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
        """Rotate the last dimension of [T, heads, R]."""
        rope, width = self.spec.rope, x.shape[-1]
        low, high = (
            width * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
            for turns in (rope.beta_fast, rope.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        y = x.clone()
        for i in range(width // 2):
            frequency = rope.theta ** (-2 * i / width)
            blend = min(max((i - low) / (high - low), 0.0), 1.0)
            frequency = frequency / rope.factor * blend + frequency * (1 - blend)
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
            for t in range(x.shape[0]):
                c, s = math.cos(t * frequency), math.sin(t * frequency)
                y[t, :, a] = x[t, :, a] * c - x[t, :, b] * s
                y[t, :, b] = x[t, :, b] * c + x[t, :, a] * s
        return y

    def _select(self, layer: int, x: torch.Tensor, q_latent: torch.Tensor, trace: Trace) -> torch.Tensor:
        """Which keys each query attends to: [T, T] bool."""
        spec, prefix, length = self.spec, f"model.layers.{layer}.self_attn.indexer.", x.shape[0]
        q = (q_latent @ self._w(prefix + "wq_b").t()).view(length, spec.index_heads, spec.index_head_dim)
        k = x @ self._w(prefix + "wk").t()
        k = (k - k.mean(-1, keepdim=True)) / torch.sqrt(k.var(-1, correction=0, keepdim=True) + 1e-6)
        k = (k * self._w(prefix + "k_norm") + self.weights[prefix + "k_norm.bias"])[:, None]
        r = spec.qk_rope_head_dim
        q, k = (torch.cat((self._rotate(v[..., :r], interleaved=False), v[..., r:]), -1) for v in (q, k))
        if self.float8_cache:
            rotation = sylvester(spec.index_head_dim)
            q, k = (fake_float8((v.bfloat16().float() @ rotation).bfloat16().float()) for v in (q, k))
        head_weights = x @ self._w(prefix + "weights_proj").t()
        scale = spec.index_heads**-0.5 * spec.index_head_dim**-0.5
        scores = torch.einsum("thd,sd->ths", q, k[:, 0]).relu().mul(head_weights[..., None]).sum(1) * scale
        allowed = torch.zeros(length, length, dtype=torch.bool)
        for t in range(length):
            row = scores[t, : t + 1].tolist()
            best = sorted(range(t + 1), key=lambda s: (-row[s], s))[: spec.index_topk]
            allowed[t, best] = True
            trace.selected.setdefault(layer, []).append(set(best))
        return allowed

    def _attention(self, layer: int, x: torch.Tensor, trace: Trace) -> torch.Tensor:
        spec, prefix, length = self.spec, f"model.layers.{layer}.self_attn.", x.shape[0]
        heads, nope, rope_dim = spec.num_heads, spec.qk_nope_head_dim, spec.qk_rope_head_dim
        q_latent = rms(x @ self._w(prefix + "q_a_proj").t(), self._w(prefix + "q_a_layernorm"), spec.rms_norm_eps)
        q = (q_latent @ self._w(prefix + "q_b_proj").t()).view(length, heads, nope + rope_dim)
        kv = x @ self._w(prefix + "kv_a_proj_with_mqa").t()
        latent = rms(kv[:, : spec.kv_lora_rank], self._w(prefix + "kv_a_layernorm"), spec.rms_norm_eps)
        k_rope = self._rotate(kv[:, None, spec.kv_lora_rank :], interleaved=True)
        if self.float8_cache:
            latent, k_rope = fake_float8(latent), k_rope.bfloat16().float()
        up = (latent @ self._w(prefix + "kv_b_proj").t()).view(length, heads, nope + spec.v_head_dim)
        q_rope = self._rotate(q[..., nope:], interleaved=True)
        m = 0.1 * spec.rope.mscale_all_dim * math.log(spec.rope.factor) + 1
        scores = torch.einsum("thn,shn->hts", q[..., :nope], up[..., :nope])
        scores = (scores + torch.einsum("thr,sr->hts", q_rope, k_rope[:, 0])) * (nope + rope_dim) ** -0.5 * m * m
        allowed = self._select(layer, x, q_latent, trace)
        weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
        out = torch.einsum("hts,shv->thv", weights, up[..., nope:]).reshape(length, -1)
        return out @ self._w(prefix + "o_proj").t()
