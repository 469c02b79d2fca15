"""The table of operations filled with the PyTorch references: the oracle of a device's whole model, on any device."""

from __future__ import annotations

from typing import Any

import torch

from kernels.cache import reference as cache
from kernels.dispatch import Operations
from kernels.dsa import paged_reference as paged
from kernels.moe import pack_reference as records
from kernels.moe import reference as moe
from kernels.norm import reference as norm
from kernels.norm.rms import Normed
from kernels.quant import product_reference as products
from kernels.quant.reference import quantise_activations


def rms_norm(residual, weight, eps, *, delta_SD=None, rows_T=None, quantise=False) -> Normed:
    if rows_T is not None:
        residual = residual[rows_T]
        delta_SD = None if delta_SD is None else delta_SD[rows_T]
    total = None if rows_T is None else residual
    if delta_SD is None:
        normed = norm.rms_norm(residual, weight, eps)
    else:
        normed, total = norm.add_rms_norm(delta_SD, residual, weight, eps)
    codes, scales = quantise_activations(normed, ue8m0=True) if quantise else (None, None)
    return Normed(normed, total, codes, scales)


def absorb_queries(q, w_uk, *, out_THC=None) -> torch.Tensor:
    result = products.absorb_queries(q, w_uk)
    return result if out_THC is None else out_THC.copy_(result)


def expand_values(latent, w_uv, *, out_THv=None) -> torch.Tensor:
    result = products.expand_values(latent, w_uv)
    return result if out_THv is None else out_THv.copy_(result)


def index_logits_decode(q, weights, pages, table, lengths, out) -> None:
    sequences = torch.arange(q.shape[0], dtype=torch.int32)
    index_logits_prefill(q[:, 0], weights[:, 0], pages, table, sequences, lengths[:, 0], out)


def index_logits_prefill(q, weights, pages, table, sequences, lengths, out) -> None:
    out.copy_(paged.index_logits(q, weights, pages, table, sequences, lengths, out.shape[1]))


def topk(logits, lengths, k, *, block_table_BP, sequences_R) -> torch.Tensor:
    return paged.slots_of(paged.topk_rows(logits, lengths, k), block_table_BP, sequences_R)


def attend_selected(q, records, slots, scale) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = paged.attend_slots(q, records, slots, 512, scale)
    return out.to(torch.bfloat16), lse


def attend_paged(q, records, table, sequences, lengths, scale) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(table.shape[1] * 64, dtype=torch.int32)
    positions = torch.where(places < lengths[:, None], places, -1)
    return attend_selected(q, records, paged.slots_of(positions, table, sequences), scale)


def attend_dense(
    q_nope, q_rope, records, table, spans, run, w_uk, w_uv, scale, *, out_THv=None
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = paged.attend_dense(q_nope, q_rope, records, table, spans, w_uk, w_uv, scale)
    return out.to(torch.bfloat16) if out_THv is None else out_THv.copy_(out), lse


def expert_mlps(rows, experts, gate_up, down, *, copies=1) -> torch.Tensor:
    return moe.expert_mlps(rows, experts.reshape(-1), gate_up, down, copies=copies)


def combine_pairs(y, weights, *, beside_TD=None, dtype=torch.float32) -> torch.Tensor:
    return moe.combine_pairs(y, weights, beside_TD).to(dtype)


def order_pairs(ids, local, *, expected_pairs=None) -> torch.Tensor:
    return torch.where((ids >= local.start) & (ids < local.stop), ids.long() - local.start, -1)


def contiguous_groups(counts, num_rows) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(counts, output_size=num_rows)


def unpack_rows(records_RB, layout) -> Any:
    return records.unpack_rows(records_RB, layout.hidden, layout.slots, float8=layout.float8)


def rank_answers(
    rows, ids, weights, local, gate_up, down, *, expected_pairs=None, dtype=torch.bfloat16
) -> torch.Tensor:
    answers = expert_mlps(rows, order_pairs(ids, local), gate_up, down, copies=ids.shape[1])
    return combine_pairs(answers, weights, dtype=dtype)


def sum_parts(parts, *, beside_TD=None, dtype=torch.float32) -> torch.Tensor:
    return moe.sum_parts(parts, beside_TD).to(dtype)


def reference_operations() -> Operations:
    """Groups of rows are the expert of each pair here, which is all that the references need."""
    return Operations(
        rms_norm=rms_norm,
        write_cache=cache.write_cache,
        prepare_queries=cache.prepare_queries,
        quantise_activations=quantise_activations,
        float8_product=products.float8_product,
        absorb_queries=absorb_queries,
        expand_values=expand_values,
        index_logits_decode=index_logits_decode,
        index_logits_prefill=index_logits_prefill,
        topk=topk,
        attend_selected=attend_selected,
        attend_paged=attend_paged,
        attend_dense=attend_dense,
        gate=moe.gate,
        order_pairs=order_pairs,
        single_group=lambda count, device: torch.zeros(count, dtype=torch.int64, device=device),
        contiguous_groups=contiguous_groups,
        pack_for_ranks=records.pack_for_ranks,
        unpack_rows=unpack_rows,
        rank_answers=rank_answers,
        sum_parts=sum_parts,
        expert_mlps=expert_mlps,
        combine_pairs=combine_pairs,
    )
