"""Latent attention with the lightning indexer: one layer, over the paged cache.

Queries, the latent and the index key are projected, the cache is written, and attention reads everything back from
the cache, so that a token sees the same numbers whether its context was computed in this step or long ago.

Legend: T tokens, B rows, S keys, H heads, C latent width, P rotated width, Q = C + P, W = unrotated + rotated query
width, V value width, N index heads, D index width, k selected keys.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import AttentionForm
from baleen.model_spec import ModelSpec
from kernels.dsa import reference as dsa
from kernels.norm.reference import rms_norm
from kernels.rope.reference import rotate_half_split, rotate_interleaved, softmax_scale
from workers.cache.tensors import CacheTensors
from workers.model.attention_form import prefers_heads
from workers.model.forward import ForwardBatch, RowGroup, Segment
from workers.model.weights import AttentionWeights

SCORE_ELEMENTS = 1 << 21
"""Scores computed at a time (query rows times heads times keys): 8 MB of float32, which stays near the caches."""

GATHER_COST = 8
"""Cost of gathering one number of a selected record, in multiply-adds; sets where `auto` changes form."""

INDEX_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Queries:
    """What one layer asks: q_nope [T, H, nope], q_rope [T, H, P], index_q [T, N, D], index_weights [T, N] float32."""

    q_nope: torch.Tensor
    q_rope: torch.Tensor
    index_q: torch.Tensor
    index_weights: torch.Tensor


class Attention:
    """Sparse latent attention of one model over one cache; a layer's weights are passed in."""

    def __init__(self, spec: ModelSpec, cache: CacheTensors, form: AttentionForm) -> None:
        self._spec = spec
        self._cache = cache
        self._form = form
        self._scale = softmax_scale(spec.rope, spec.qk_head_dim)
        self._index_scale = spec.index_heads**-0.5 * spec.index_head_dim**-0.5

    def __call__(
        self, layer: int, weights: AttentionWeights, x_TD: torch.Tensor, step: ForwardBatch, rotations_TP: torch.Tensor
    ) -> torch.Tensor:
        """Attention output of a layer, before the residual: [T, hidden], in x's dtype."""
        queries = self._project_and_store(layer, weights, x_TD, step, rotations_TP)
        spec = self._spec
        out_THV = x_TD.new_empty(x_TD.shape[0], spec.num_heads, spec.v_head_dim)
        rows = slice(0, step.groups[-1].tokens.stop) if step.groups else slice(0, 0)
        if step.groups:
            latent_q = self._latent_queries(weights, queries, rows)
            latent_out = [self._attend_row_group(layer, queries, latent_q, group) for group in step.groups]
            out_THV[rows] = _from_latent(weights, torch.cat(latent_out) if len(latent_out) > 1 else latent_out[0])
        for segment in step.segments:
            out_THV[segment.tokens] = self._attend_segment(layer, weights, queries, segment)
        return out_THV.flatten(1) @ weights.o.t()

    def _project_and_store(
        self, layer: int, weights: AttentionWeights, x_TD: torch.Tensor, step: ForwardBatch, rotations_TP: torch.Tensor
    ) -> Queries:
        """Project the layer's input, write latent record and index key, return the queries."""
        spec = self._spec
        q_latent, latent, rope_key, index_key = (x_TD @ weights.qkv_a.t()).split(
            (spec.q_lora_rank, spec.kv_lora_rank, spec.qk_rope_head_dim, spec.index_head_dim), dim=-1
        )
        q_latent = rms_norm(q_latent, weights.q_a_norm, spec.rms_norm_eps)
        q_all, index_q = (q_latent @ weights.q_b.t()).split(
            (spec.num_heads * spec.qk_head_dim, spec.index_heads * spec.index_head_dim), dim=-1
        )
        q_nope, q_rope = q_all.unflatten(-1, (spec.num_heads, -1)).split(
            (spec.qk_nope_head_dim, spec.qk_rope_head_dim), dim=-1
        )
        records_TQ = torch.cat(
            (
                rms_norm(latent, weights.kv_a_norm, spec.rms_norm_eps),
                rotate_interleaved(rope_key[:, None], rotations_TP)[:, 0],
            ),
            dim=-1,
        )
        index_key = torch.nn.functional.layer_norm(
            index_key.float(),
            (spec.index_head_dim,),
            weights.index_k_norm_weight,
            weights.index_k_norm_bias,
            INDEX_NORM_EPS,
        ).to(x_TD.dtype)
        index_key = self._rotate_index(index_key[:, None], rotations_TP)[:, 0]
        self._cache.write(layer, step.slots_T, records_TQ, index_key)
        index_q = self._rotate_index(index_q.unflatten(-1, (spec.index_heads, -1)), rotations_TP)
        index_weights = (x_TD.float() @ weights.index_weights.t()) * self._index_scale
        index_q, index_weights = self._cache.index_queries(index_q, index_weights)
        return Queries(q_nope, rotate_interleaved(q_rope, rotations_TP), index_q, index_weights)

    def _rotate_index(self, x_TND: torch.Tensor, rotations_TP: torch.Tensor) -> torch.Tensor:
        """The indexer rotates its FIRST dimensions, in half-split pairs."""
        width = self._spec.qk_rope_head_dim
        return torch.cat((rotate_half_split(x_TND[..., :width], rotations_TP), x_TND[..., width:]), dim=-1)

    def _latent_queries(self, weights: AttentionWeights, queries: Queries, tokens: slice) -> torch.Tensor:
        """Absorb the key up-projection into the queries: [B, H, Q]."""
        absorbed_HBC = torch.bmm(queries.q_nope[tokens].transpose(0, 1), weights.w_uk)
        return torch.cat((absorbed_HBC.transpose(0, 1), queries.q_rope[tokens]), dim=-1)

    def _attend_row_group(self, layer: int, queries: Queries, latent_q: torch.Tensor, group: RowGroup) -> torch.Tensor:
        """Latent-space output of a group's rows: [B, H, C]."""
        num_rows, num_keys = group.hidden_BS.shape
        q_BHQ = latent_q[group.tokens]
        latent_dim = self._spec.kv_lora_rank
        if not group.sparse:
            records_BSQ = self._cache.read_blocks(layer, group.blocks_Bn.flatten()).view(num_rows, num_keys, -1)
            return dsa.attend_rows(q_BHQ, records_BSQ, latent_dim, self._scale, group.hidden_BS)
        keys, key_scales = self._cache.read_index_blocks(layer, group.blocks_Bn.flatten())
        scores_BS = dsa.index_scores(
            queries.index_q[group.tokens],
            queries.index_weights[group.tokens],
            keys.view(num_rows, num_keys, -1),
            None if key_scales is None else key_scales.view(num_rows, num_keys),
        ).masked_fill_(group.hidden_BS, dsa.NEGATIVE_INFINITY)
        positions_Bk = dsa.topk_positions(scores_BS, self._spec.index_topk)
        blocks_Bk = group.blocks_Bn.gather(1, positions_Bk // BLOCK_TOKENS)
        slots_Bk = blocks_Bk * BLOCK_TOKENS + positions_Bk % BLOCK_TOKENS
        records_BkQ = self._cache.read_slots(layer, slots_Bk.flatten()).view(*slots_Bk.shape, -1)
        return dsa.attend_rows(q_BHQ, records_BkQ, latent_dim, self._scale)

    def _attend_segment(
        self, layer: int, weights: AttentionWeights, queries: Queries, segment: Segment
    ) -> torch.Tensor:
        """Output of a segment's queries: [T, H, V]."""
        records_SQ = self._cache.read_blocks(layer, segment.blocks_n)[: segment.context]
        index_keys = None
        if segment.context > self._spec.index_topk:
            keys, key_scales = self._cache.read_index_blocks(layer, segment.blocks_n)
            index_keys = (keys[: segment.context], None if key_scales is None else key_scales[: segment.context])
        if self._prefers_heads(segment):
            return self._attend_segment_by_head(weights, queries, segment, records_SQ, index_keys)
        return self._attend_segment_latent(weights, queries, segment, records_SQ, index_keys)

    def _attend_segment_by_head(
        self,
        weights: AttentionWeights,
        queries: Queries,
        segment: Segment,
        records_SQ: torch.Tensor,
        index_keys: tuple[torch.Tensor, torch.Tensor | None] | None,
    ) -> torch.Tensor:
        """The multi-head form: keys and values expanded per head, unselected keys masked."""
        spec = self._spec
        latent_SC, rope_SP = records_SQ.split((spec.kv_lora_rank, spec.qk_rope_head_dim), dim=-1)
        nope_HSn = torch.matmul(latent_SC, weights.w_uk.transpose(1, 2))
        keys_HSW = torch.cat((nope_HSn, rope_SP.expand(spec.num_heads, -1, -1)), dim=-1)
        values_HSV = torch.matmul(latent_SC, weights.w_uv.transpose(1, 2))
        q_HTW = torch.cat((queries.q_nope[segment.tokens], queries.q_rope[segment.tokens]), dim=-1).transpose(0, 1)
        out_HTV = q_HTW.new_empty(spec.num_heads, segment.length, spec.v_head_dim)
        for first, end in self._query_blocks(segment):
            seen = segment.start + end
            hidden_TS = self._causal_mask(segment, first, end)
            if segment.start + first >= spec.index_topk:
                scores_TS = self._segment_scores(queries, segment, index_keys, first, end, hidden_TS)
                hidden_TS = dsa.topk_mask(scores_TS, spec.index_topk).logical_not_()
            out_HTV[:, first:end] = dsa.attend_shared(
                q_HTW[:, first:end], keys_HSW[:, :seen], values_HSV[:, :seen], self._scale, hidden_TS
            )
        return out_HTV.transpose(0, 1)

    def _attend_segment_latent(
        self,
        weights: AttentionWeights,
        queries: Queries,
        segment: Segment,
        records_SQ: torch.Tensor,
        index_keys: tuple[torch.Tensor, torch.Tensor | None] | None,
    ) -> torch.Tensor:
        """The absorbed form: selected records are gathered per query; without an indexer all are shared."""
        spec = self._spec
        q_THQ = self._latent_queries(weights, queries, segment.tokens)
        out_THC = q_THQ.new_empty(segment.length, spec.num_heads, spec.kv_lora_rank)
        for first, end in self._query_blocks(segment):
            seen = segment.start + end
            hidden_TS = self._causal_mask(segment, first, end)
            if segment.start + first >= spec.index_topk:
                scores_TS = self._segment_scores(queries, segment, index_keys, first, end, hidden_TS)
                positions_Tk = dsa.topk_positions(scores_TS, spec.index_topk)
                chosen_TkQ = records_SQ.index_select(0, positions_Tk.flatten()).view(*positions_Tk.shape, -1)
                out_THC[first:end] = dsa.attend_rows(q_THQ[first:end], chosen_TkQ, spec.kv_lora_rank, self._scale)
            else:
                # heads become rows: every query of every head reads the same records
                shared_q = q_THQ[first:end].reshape(1, -1, q_THQ.shape[-1])
                hidden_XS = hidden_TS.repeat_interleave(spec.num_heads, dim=0)
                values_SC = records_SQ[None, :seen, : spec.kv_lora_rank]
                shared = dsa.attend_shared(shared_q, records_SQ[None, :seen], values_SC, self._scale, hidden_XS)
                out_THC[first:end] = shared.view(end - first, spec.num_heads, -1)
        return _from_latent(weights, out_THC)

    def _segment_scores(
        self,
        queries: Queries,
        segment: Segment,
        index_keys: tuple[torch.Tensor, torch.Tensor | None] | None,
        first: int,
        end: int,
        hidden_TS: torch.Tensor,
    ) -> torch.Tensor:
        """Index scores of a block of queries, with hidden keys at minus infinity: [T, S] float32."""
        assert index_keys is not None, "a query past index_topk has index keys"
        keys, key_scales = index_keys
        seen = segment.start + end
        tokens = slice(segment.tokens.start + first, segment.tokens.start + end)
        scores_TS = dsa.index_scores_shared(
            queries.index_q[tokens],
            queries.index_weights[tokens],
            keys[:seen],
            None if key_scales is None else key_scales[:seen],
        )
        return scores_TS.masked_fill_(hidden_TS, dsa.NEGATIVE_INFINITY)

    def _query_blocks(self, segment: Segment) -> list[tuple[int, int]]:
        """Ranges of queries computed together; none crosses index_topk, where the indexer begins."""
        spec = self._spec
        size = SCORE_ELEMENTS // (max(spec.num_heads, spec.index_heads) * segment.context)
        size = max(16, min(256, size))
        border = min(max(spec.index_topk - segment.start, 0), segment.length)
        cuts = [*range(0, border, size), *range(border, segment.length, size), segment.length]
        return list(itertools.pairwise(cuts))

    def _causal_mask(self, segment: Segment, first: int, end: int) -> torch.Tensor:
        """What queries first to end - 1 must not see among the keys up to the last of them: [T, S] bool."""
        positions_T = torch.arange(segment.start + first, segment.start + end)
        return torch.arange(segment.start + end)[None, :] > positions_T[:, None]

    def _prefers_heads(self, segment: Segment) -> bool:
        if self._form != "auto":
            return self._form == "mha"
        return prefers_heads(self._spec, segment.start, segment.length, gather_cost=GATHER_COST)


def _from_latent(weights: AttentionWeights, latent_THC: torch.Tensor) -> torch.Tensor:
    """Apply the value up-projection: [T, H, C] to [T, H, V]."""
    return torch.bmm(latent_THC.transpose(0, 1), weights.w_uv.transpose(1, 2)).transpose(0, 1)
