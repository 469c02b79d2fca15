"""Latent attention of one layer on a device, through the table of operations.

Pieces of short contexts whose keys are worth expanding take the multi-head form (`workers.model.attention_form`). All
other rows, and every step of decode, stay in latent space: they attend to all records of their sequence; where some
query of the step sees more keys than it may select, index logits are scored over the pages, the best become slots, and
attention gathers those.

Legend: T tokens, H heads, C latent width, P rotated width, Q = C + P, n unrotated width, v value width, S keys.
"""

from __future__ import annotations

import torch

from baleen.model_spec import ModelSpec
from kernels.dispatch import Operations
from kernels.norm.rms import Normed
from kernels.quant.scaled import Scaled
from kernels.rope.reference import softmax_scale
from workers.cache.device_tensors import DeviceCache
from workers.model.attention_form import FormSplit
from workers.model.device_batch import DeviceBatch
from workers.model.device_weights import DeviceAttention
from workers.model.limits import INDEX_HEADS, LOGIT_BYTES, require_widths

LOGIT_STEP = 256
"""Rows of index logits are as long as a multiple of this."""

ROW_STEP = 64


def linear(operations: Operations, x: Normed, w: Scaled) -> torch.Tensor:
    """x times w transposed: [T, rows of w] bfloat16. x has codes where w is float8."""
    if w.scales is None:
        return torch.nn.functional.linear(x.normed, w.values)
    assert x.codes is not None and x.scales is not None, "a float8 product needs float8 rows"
    return operations.float8_product(x.codes, x.scales, w.values, w.scales)


class PagedAttention:
    """Attention of one model over one device's cache; a layer's weights are passed in."""

    def __init__(self, spec: ModelSpec, cache: DeviceCache, operations: Operations) -> None:
        """Raises ConfigError on widths that the kernels do not have."""
        require_widths(spec)
        self._spec = spec
        self._cache = cache
        self._ops = operations
        self._scale = softmax_scale(spec.rope, spec.qk_head_dim)
        self._index_scale = spec.index_heads**-0.5 * spec.index_head_dim**-0.5

    def __call__(
        self,
        layer: int,
        weights: DeviceAttention,
        x: Normed,
        step: DeviceBatch,
        turns_TP2: torch.Tensor,
        forms: FormSplit,
    ) -> torch.Tensor:
        """Attention output of a layer, before the residual: [T, hidden] bfloat16.

        turns: cosines and sines. forms: of the step's rows.
        """
        spec, ops = self._spec, self._ops
        records, pages = self._cache.latent[layer], self._cache.index[layer]
        projected = linear(ops, x, weights.qkv_a)
        latent = ops.write_cache(
            projected, weights.norms, turns_TP2, step.slots_T, records, pages, quantise=weights.q_b.is_float8
        )
        q = linear(ops, Normed(latent.normed, None, latent.codes, latent.scales), weights.q_b)
        q_THQ = torch.empty(
            step.num_tokens, spec.num_heads, spec.latent_dim, dtype=torch.bfloat16, device=projected.device
        )
        codes, head_weights = ops.prepare_queries(
            q,
            x.normed.float() @ weights.index_weights.t(),
            turns_TP2,
            q_THQ,
            num_heads=spec.num_heads,
            nope_dim=spec.qk_nope_head_dim,
            index_heads=spec.index_heads,
            weight_scale=self._index_scale,
            padded_heads=INDEX_HEADS,
        )
        main = q[:, : spec.num_heads * spec.qk_head_dim].unflatten(-1, (spec.num_heads, -1))
        nope_THn = main[..., : spec.qk_nope_head_dim]
        values_THv = torch.empty(
            step.num_tokens, spec.num_heads, spec.v_head_dim, dtype=torch.bfloat16, device=projected.device
        )
        for pieces, run in forms.dense:
            rows = slice(run.first_row, run.first_row + run.num_rows)
            ops.attend_dense(
                nope_THn[rows],
                q_THQ[rows, :, spec.kv_lora_rank :],
                records,
                step.block_table_BP[pieces],
                step.spans_B4[pieces],
                run,
                weights.w_uk,
                weights.w_uv,
                self._scale,
                out_THv=values_THv[rows],
            )
        for rows in forms.latent:
            ops.absorb_queries(nope_THn[rows], weights.w_uk, out_THC=q_THQ[rows, :, : spec.kv_lora_rank])
            if step.most_context <= spec.index_topk:
                sequences, lengths = step.sequences_T[rows], step.lengths_T[rows]
                found, _ = ops.attend_paged(q_THQ[rows], records, step.block_table_BP, sequences, lengths, self._scale)
            else:
                slots_TK = self._select(codes, head_weights, pages, step, rows)
                found, _ = ops.attend_selected(q_THQ[rows], records, slots_TK, self._scale)
            ops.expand_values(found, weights.w_uv, out_THv=values_THv[rows])
        values = values_THv.flatten(1)
        if weights.o.is_float8:
            quantised, scales = ops.quantise_activations(values, ue8m0=True)
            return linear(ops, Normed(values, None, quantised, scales), weights.o)
        return linear(ops, Normed(values, None, None, None), weights.o)

    def _select(
        self, codes: torch.Tensor, head_weights: torch.Tensor, pages: torch.Tensor, step: DeviceBatch, of: slice
    ) -> torch.Tensor:
        """Slots of the keys that each of these queries attends to: [T, index_topk] int32, -1 where it sees fewer."""
        width = -(-step.most_context // LOGIT_STEP) * LOGIT_STEP
        rows = max(ROW_STEP, LOGIT_BYTES // (4 * width) // ROW_STEP * ROW_STEP)
        rows = min(rows, of.stop - of.start)
        logits = torch.empty(rows, width, dtype=torch.float32, device=codes.device)
        parts = []
        for first in range(of.start, of.stop, rows):
            part = slice(first, min(first + rows, of.stop))
            sequences, lengths = step.sequences_T[part], step.lengths_T[part]
            out = logits[: len(lengths)]
            if step.is_decode:
                self._ops.index_logits_decode(
                    codes[part, None],
                    head_weights[part, None],
                    pages,
                    step.block_table_BP[part],
                    lengths[:, None],
                    out,
                )
            else:
                self._ops.index_logits_prefill(
                    codes[part], head_weights[part], pages, step.block_table_BP, sequences, lengths, out
                )
            parts.append(
                self._ops.topk(
                    out,
                    lengths,
                    self._spec.index_topk,
                    block_table_BP=step.block_table_BP,
                    sequences_R=sequences,
                )
            )
        return torch.cat(parts) if len(parts) > 1 else parts[0]
