"""DeepSeek-V3.2 for training: the whole forward pass over packed documents, with gradients, in plain PyTorch.

Parameters are a flat dict under checkpoint names, as workers/model/names.py lists them. Matrices are multiplied in
bfloat16, everything else is float32. Documents lie one after another on the token axis; only attention sees them apart,
in groups of similar length.

Legend: T tokens, B documents of a group, L their padded length, D hidden size, H heads, N index heads, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from baleen.model_spec import ModelSpec
from examples.demo_model.operations import HeadLoss, RmsNorm
from kernels.dsa.reference import topk_mask
from kernels.moe.reference import choose_experts
from kernels.rope.reference import softmax_scale, yarn_inverse_frequencies
from workers.model.names import Kind, layer_prefix, tensor_rules

Parameters = dict[str, torch.Tensor]

ATTENTION_ROWS = 256
"""Queries whose scores are computed at a time."""

INDEX_SHARE = 4
"""The indexer learns from one query in so many, from others each turn."""

MTP_ALIASES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
"""Tensors of the prediction layer that are the main model's own."""


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that attention computes together, which lie one after another. rows [B, L]: their tokens, counted from
    the group's first, at which padding points; real [B, L]: what is not padding; places [t]: where the group's t tokens
    lie in the flattened [B * L].
    """

    rows: torch.Tensor
    real: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch: ids, positions, targets and weights [T] (weights 0 where nothing is learnt), and the groups."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    ends: torch.Tensor
    groups: Sequence[Group]


def pack(documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> Packed:
    """Lay documents (ids, weights) one after another, in order of length, and group those of similar length."""
    ordered = sorted(documents, key=lambda document: len(document[0]))
    lengths = [len(ids) for ids, _ in ordered]
    ids = np.concatenate([ids for ids, _ in ordered])
    # the weight of a token counts where it is predicted: one place before it
    weights = np.concatenate([np.append(weights[1:], 0) for _, weights in ordered])
    positions = np.concatenate([np.arange(length) for length in lengths])
    starts = np.cumsum([0, *lengths])
    groups = []
    first = 0
    while first < len(lengths):
        last = first
        # padding to the longest wastes at most a quarter
        while last + 1 < len(lengths) and lengths[last + 1] <= max(lengths[first] * 1.25, lengths[first] + 16):
            last += 1
        count, longest = last - first + 1, lengths[last]
        rows = np.zeros((count, longest), dtype=np.int64)
        for row, index in enumerate(range(first, last + 1)):
            rows[row, : lengths[index]] = np.arange(starts[index], starts[index + 1]) - starts[first]
        places = np.concatenate(
            [row * longest + np.arange(lengths[index]) for row, index in enumerate(range(first, last + 1))]
        )
        real = np.arange(longest) < np.array(lengths[first : last + 1])[:, None]
        groups.append(Group(torch.from_numpy(rows), torch.from_numpy(real), torch.from_numpy(places)))
        first = last + 1
    as_tensor = torch.from_numpy(ids)
    ends = np.zeros(len(ids), dtype=bool)
    ends[starts[1:] - 1] = True
    return Packed(
        as_tensor,
        torch.from_numpy(positions),
        torch.roll(as_tensor, -1),
        torch.from_numpy(weights.astype(np.float32)),
        torch.from_numpy(ends),
        groups,
    )


def initial_parameters(spec: ModelSpec, seed: int) -> Parameters:
    """Random parameters: matrices by fan-in, smaller where they write to the residual stream; norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    parameters: Parameters = {}
    for rule in tensor_rules(spec):
        if rule.name.split(".", 3)[-1] in MTP_ALIASES and rule.name.startswith("model.layers."):
            continue
        if rule.kind is Kind.NORM:
            value = torch.ones(rule.shape)
        elif rule.kind is Kind.BIAS:
            value = torch.zeros(rule.shape)
        elif rule.kind is Kind.EMBEDDING:
            value = torch.randn(rule.shape, generator=generator) * 0.3
        else:
            std = 0.7 / math.sqrt(rule.shape[1])
            if rule.name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            value = torch.randn(rule.shape, generator=generator) * std
            if rule.name == "lm_head.weight":
                # a token that is copied as it was read is then right from the start, whatever token it is
                value = 0.1 * parameters["model.embed_tokens.weight"].detach()
        parameters[rule.name] = value.requires_grad_(not rule.name.endswith("e_score_correction_bias"))
    return parameters


@dataclass(slots=True)
class Losses:
    """What one forward pass found: sums of weighted losses, each already a mean; loads [layers, E] of the experts."""

    main: torch.Tensor
    mtp: torch.Tensor
    index: torch.Tensor
    loads: dict[str, torch.Tensor]
    per_token: torch.Tensor


class TrainingModel:
    """The forward pass. indexer: compute it and its loss; sparse: let it choose what attention sees; mtp: predict two
    tokens ahead, too; index_turn: which queries the indexer learns from.
    """

    def __init__(self, spec: ModelSpec, parameters: Parameters, *, compute_dtype: torch.dtype = torch.bfloat16) -> None:
        self.spec = spec
        self.parameters = parameters
        self.compute_dtype = compute_dtype
        self.indexer = self.sparse = self.mtp = False
        self.index_turn = 0
        self._frequencies = yarn_inverse_frequencies(spec.rope, spec.qk_rope_head_dim)
        self._scale = softmax_scale(spec.rope, spec.qk_head_dim)
        rope = spec.qk_rope_head_dim
        # interleaved pairs, sorted so that they can be turned as halves; both sides of a product are sorted alike
        halves = torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2)))
        width = spec.qk_head_dim
        of_head = torch.cat((torch.arange(spec.qk_nope_head_dim), spec.qk_nope_head_dim + halves))
        self._query_rows = torch.cat([head * width + of_head for head in range(spec.num_heads)])
        latents = spec.q_lora_rank + spec.kv_lora_rank
        self._down_rows = torch.cat((torch.arange(latents), latents + halves))

    def losses(self, batch: Packed) -> Losses:
        """One forward pass over a batch."""
        spec = self.spec
        self._index_losses: list[torch.Tensor] = []
        self._loads: dict[str, torch.Tensor] = {}
        self._turn(batch.positions)
        h = functional.embedding(batch.ids, self.parameters["model.embed_tokens.weight"])
        for layer in range(spec.num_layers):
            h = self._layer(layer, h, batch)
        h = self._norm("model.norm", h)
        main, per_token = self._predict(h, batch.targets, batch.weights)
        mtp = torch.zeros(())
        if self.mtp:
            mtp = self._predict_further(h, batch)
        index = torch.cat(self._index_losses).mean() if self._index_losses else torch.zeros(())
        return Losses(main, mtp, index, self._loads, per_token)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Logits of every position of one document: [T, vocab]."""
        document = (np.array(token_ids), np.zeros(len(token_ids)))
        batch = pack([document])
        self._index_losses, self._loads = [], {}
        self._turn(batch.positions)
        h = functional.embedding(batch.ids, self.parameters["model.embed_tokens.weight"])
        for layer in range(self.spec.num_layers):
            h = self._layer(layer, h, batch)
        return self._norm("model.norm", h) @ self.parameters["lm_head.weight"].t()

    def _predict(
        self, h: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean of the cross entropy over the places that count, and their losses."""
        places = weights.nonzero()[:, 0]
        chosen = h.index_select(0, places).to(self.compute_dtype)
        mean, per_token = HeadLoss.apply(chosen, self._weight("lm_head"), targets[places], weights[places])
        return mean, per_token

    def _predict_further(self, h: torch.Tensor, batch: Packed) -> torch.Tensor:
        prefix = layer_prefix(self.spec.num_layers)
        # the last token of a document has no next one: what is computed for it is not counted
        embedded = functional.embedding(batch.targets, self.parameters["model.embed_tokens.weight"])
        joined = torch.cat((self._norm(prefix + "enorm", embedded), self._norm(prefix + "hnorm", h)), dim=-1)
        x = self._layer(self.spec.num_layers, self._linear(joined, prefix + "eh_proj"), batch)
        targets, weights = torch.roll(batch.targets, -1), torch.roll(batch.weights, -1)
        weights = weights.masked_fill(batch.ends | torch.roll(batch.ends, -1), 0.0)
        return self._predict(self._norm(prefix + "shared_head.norm", x), targets, weights)[0]

    def _turn(self, positions: torch.Tensor) -> None:
        angles = positions.float()[:, None] * self._frequencies
        self._cos, self._sin = angles.cos(), angles.sin()

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate the two halves of the last dimension of [T, heads, R], in float32."""
        a, b = x.float().chunk(2, dim=-1)
        cos, sin = self._cos[:, None], self._sin[:, None]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    def _norm(self, name: str, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        normed: torch.Tensor = RmsNorm.apply(x, self.parameters[name + ".weight"], self.spec.rms_norm_eps, dtype)
        return normed

    def _weight(self, name: str) -> torch.Tensor:
        return self.parameters[name + ".weight"].to(self.compute_dtype)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x.to(self.compute_dtype), self._weight(name))

    def _layer(self, layer: int, h: torch.Tensor, batch: Packed) -> torch.Tensor:
        prefix = layer_prefix(layer)
        attended = self._attention(prefix + "self_attn.", self._norm(prefix + "input_layernorm", h), batch)
        h = h + attended.float()
        x = self._norm(prefix + "post_attention_layernorm", h)
        dense = layer < self.spec.first_dense_layers
        y = self._mlp(prefix + "mlp.", x) if dense else self._experts(prefix + "mlp.", x)
        return h + y.float()

    def _mlp(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        gate_up = torch.cat((self._weight(prefix + "gate_proj"), self._weight(prefix + "up_proj")))
        gate, up = functional.linear(x.to(self.compute_dtype), gate_up).chunk(2, dim=-1)
        return self._linear(functional.silu(gate) * up, prefix + "down_proj")

    def _experts(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        scores = torch.sigmoid(x @ self.parameters[prefix + "gate.weight"].t())
        ids_TK, weights_TK = choose_experts(
            scores,
            self.parameters[prefix + "gate.e_score_correction_bias"],
            experts_per_token=spec.experts_per_token,
            num_groups=spec.num_expert_groups,
            topk_groups=spec.topk_groups,
            normalise=spec.norm_topk_prob,
            scaling=spec.routed_scaling_factor,
        )
        order = ids_TK.flatten().argsort()
        counts = torch.bincount(ids_TK.flatten(), minlength=spec.num_experts)
        self._loads[prefix] = counts
        tokens = order // spec.experts_per_token
        rows = x.to(self.compute_dtype).index_select(0, tokens).split(counts.tolist())
        parts = [self._mlp(f"{prefix}experts.{expert}.", part) for expert, part in enumerate(rows) if len(part)]
        weighted = torch.cat(parts).float() * weights_TK.flatten()[order, None]
        y = self._mlp(prefix + "shared_experts.", x).float()
        return y.index_add(0, tokens, weighted)

    def _attention(self, prefix: str, x: torch.Tensor, batch: Packed) -> torch.Tensor:
        spec = self.spec
        nope, rope = spec.qk_nope_head_dim, spec.qk_rope_head_dim
        down = torch.cat((self._weight(prefix + "q_a_proj"), self._weight(prefix + "kv_a_proj_with_mqa")))
        q_latent, latent, k_rope = functional.linear(x.to(self.compute_dtype), down[self._down_rows]).split(
            (spec.q_lora_rank, spec.kv_lora_rank, rope), dim=-1
        )
        q_latent = self._norm(prefix + "q_a_layernorm", q_latent, self.compute_dtype)
        query_rows = self._weight(prefix + "q_b_proj")[self._query_rows]
        q = functional.linear(q_latent, query_rows).unflatten(-1, (spec.num_heads, -1))
        kv = self._linear(self._norm(prefix + "kv_a_layernorm", latent, self.compute_dtype), prefix + "kv_b_proj")
        kv = kv.unflatten(-1, (spec.num_heads, -1))
        k_rope = self._rotate(k_rope[:, None]).expand(-1, spec.num_heads, -1)
        query = torch.cat((q[..., :nope], self._rotate(q[..., nope:])), dim=-1) * self._scale
        key = torch.cat((kv[..., :nope], k_rope), dim=-1)
        index = self._index(prefix + "indexer.", x.detach(), q_latent.detach()) if self.indexer else None
        sizes = [len(group.places) for group in batch.groups]
        of_groups = zip(*(tensor.split(sizes) for tensor in (query, key, kv[..., nope:])), strict=True)
        index_of = list(zip(*(tensor.split(sizes) for tensor in index), strict=True)) if index else [None] * len(sizes)
        parts = [
            self._attend(group, *tensors, of_index)
            for group, tensors, of_index in zip(batch.groups, of_groups, index_of, strict=True)
        ]
        return self._linear(torch.cat(parts).flatten(1), prefix + "o_proj")

    def _index(
        self, prefix: str, x: torch.Tensor, q_latent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Index queries [T, N, width], keys [T, width] and head weights [T, N]; the input gives no gradient."""
        spec, rope = self.spec, self.spec.qk_rope_head_dim
        q = self._linear(q_latent, prefix + "wq_b").unflatten(-1, (spec.index_heads, -1))
        k = functional.layer_norm(
            self._linear(x, prefix + "wk").float(),
            (spec.index_head_dim,),
            self.parameters[prefix + "k_norm.weight"],
            self.parameters[prefix + "k_norm.bias"],
            1e-6,
        ).to(self.compute_dtype)[:, None]
        q, k = (torch.cat((self._rotate(v[..., :rope]), v[..., rope:]), dim=-1) for v in (q, k))
        weights = x @ self.parameters[prefix + "weights_proj.weight"].t()
        return q, k[:, 0], weights * (spec.index_heads**-0.5 * spec.index_head_dim**-0.5)

    def _attend(
        self,
        group: Group,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        index: tuple[torch.Tensor, ...] | None,
    ) -> torch.Tensor:
        """Attention output [t, H, value width] of a group's tokens from their query, key and value [t, H, width].

        Some rows at a time, which see the keys up to the last of them, so that scores stay in a processor's cache.
        """
        count, length = group.rows.shape
        q, k, v = (_padded(group, tensor).transpose(1, 2) for tensor in (query, key, value))
        index = tuple(_padded(group, tensor) for tensor in index) if index and length > self.spec.index_topk else None
        parts = []
        for start in range(0, length, ATTENTION_ROWS):
            end = min(start + ATTENTION_ROWS, length)
            hidden = torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)
            scores = torch.matmul(q[:, :, start:end], k[:, :, :end].transpose(-1, -2))
            if index is None or end <= self.spec.index_topk:
                probabilities = scores.masked_fill_(hidden, -math.inf).softmax(-1)
            else:
                keys = index[1][:, :end]
                if self.sparse:
                    with torch.no_grad():
                        ranked = self._index_scores(index[0][:, start:end], keys, index[2][:, start:end])
                        hidden = topk_mask(ranked.masked_fill_(hidden, -math.inf), self.spec.index_topk).logical_not_()
                else:
                    hidden = hidden.expand(count, -1, -1)
                probabilities = scores.masked_fill_(hidden[:, None], -math.inf).softmax(-1)
                rows = torch.arange(end - start)[self.index_turn % INDEX_SHARE :: INDEX_SHARE]
                predicted = self._index_scores(index[0][:, start + rows], keys, index[2][:, start + rows])
                target = probabilities.detach()[:, :, rows].float().mean(1)
                learnt = group.real[:, start + rows] & (start + rows >= self.spec.index_topk)
                self._learn_index(predicted, target, hidden[:, rows], learnt)
            parts.append(torch.matmul(probabilities, v[:, :, :end]))
        out = torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1)
        return out if count == 1 else out.index_select(0, group.places)

    def _index_scores(self, q: torch.Tensor, keys: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Index scores [B, rows, keys] of q [B, rows, N, width], keys [B, keys, width], weights [B, rows, N]."""
        total = torch.zeros(q.shape[0], q.shape[1], keys.shape[1])
        for head in range(self.spec.index_heads):
            products = torch.matmul(q[:, :, head], keys.transpose(-1, -2)).relu()
            total = total + products * weights[:, :, head, None]
        return total

    def _learn_index(
        self, index_scores: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, learnt: torch.Tensor
    ) -> None:
        """Divergence of the indexer's distribution from what the heads attend to, over tokens that have a choice."""
        predicted = index_scores.masked_fill(hidden, -math.inf).log_softmax(-1)
        cross = -(target * predicted.masked_fill(hidden, 0.0)).sum(-1)
        entropy = -(target * target.clamp(min=1e-9).log()).sum(-1)
        self._index_losses.append((cross - entropy)[learnt])


def _padded(group: Group, tensor: torch.Tensor) -> torch.Tensor:
    """A group's tokens as documents of one length: [t, ...] to [B, L, ...]."""
    count, length = group.rows.shape
    if count == 1:
        return tensor[None]
    return tensor.index_select(0, group.rows.flatten()).unflatten(0, (count, length))
