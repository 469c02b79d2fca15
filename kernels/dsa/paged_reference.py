"""The truth of the kernels over paged caches: logits by page, top-k by row, attention over slots. In float32 or wider.

Legend: R query rows, N index heads, D index width, S key positions, B sequences, P pages of a table, K selected keys,
H heads, Q query width (latent and rotated), C latent width, T tokens, n unrotated width, v value width, P pieces.
"""

from __future__ import annotations

import torch

from kernels.cache.layout import PAGE_TOKENS, read_index_keys, unpack_latent
from kernels.dsa.reference import NEGATIVE_INFINITY, topk_mask


def index_logits(
    q_RND: torch.Tensor,
    weights_RN: torch.Tensor,
    pages: torch.Tensor,
    block_table_BP: torch.Tensor,
    sequences_R: torch.Tensor,
    lengths_R: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """Logits of each row over the keys of its sequence: [R, width] float64, minus infinity past the row's length.

    See `kernels.dsa.logits` for the arguments. The sums are in float64.
    """
    logits_RS = torch.full((q_RND.shape[0], width), NEGATIVE_INFINITY, dtype=torch.float64, device=q_RND.device)
    for row, (sequence, length) in enumerate(zip(sequences_R.tolist(), lengths_R.tolist(), strict=True)):
        seen = max(0, min(length, width, block_table_BP.shape[1] * PAGE_TOKENS))
        used = block_table_BP[sequence, : -(-seen // PAGE_TOKENS)].long()
        keys_SD, scales_S = read_index_keys(pages[used], q_RND.shape[-1])
        dots_NS = (q_RND[row].double() @ keys_SD.double().t()).relu_()
        logits_S = (weights_RN[row].double() @ dots_NS) * scales_S.double()
        logits_RS[row, :seen] = logits_S[:seen]
    return logits_RS


def topk_rows(logits_RS: torch.Tensor, lengths_R: torch.Tensor, k: int) -> torch.Tensor:
    """The positions of `kernels.dsa.topk`: [R, k] int32, ascending, padded with -1.

    Equal logits at the cutoff: the lower position wins. Minus infinity and NaN are never selected.
    """
    rows, width = logits_RS.shape
    positions_S = torch.arange(width, device=logits_RS.device)
    hidden_RS = (positions_S >= lengths_R[:, None]) | logits_RS.isnan()
    scores_RS = logits_RS.masked_fill(hidden_RS, NEGATIVE_INFINITY)
    chosen_RS = scores_RS > NEGATIVE_INFINITY
    if k < width:
        chosen_RS &= topk_mask(scores_RS, k)
    out_RK = torch.full((rows, k), -1, dtype=torch.int32, device=logits_RS.device)
    for row in range(rows):
        chosen = chosen_RS[row].nonzero()[:, 0].to(torch.int32)
        out_RK[row, : chosen.numel()] = chosen
    return out_RK


def slots_of(positions_RK: torch.Tensor, block_table_BP: torch.Tensor, sequences_R: torch.Tensor) -> torch.Tensor:
    """Slots of positions through the block table: [R, K] int32; -1 stays -1."""
    places_RK = positions_RK.clamp(min=0).long()
    pages_RK = block_table_BP[sequences_R.long()].gather(1, places_RK // PAGE_TOKENS)
    slots_RK = pages_RK * PAGE_TOKENS + places_RK % PAGE_TOKENS
    return torch.where(positions_RK < 0, -1, slots_RK).to(torch.int32)


def attend_slots(
    q_RHQ: torch.Tensor, records: torch.Tensor, slots_RK: torch.Tensor, latent_dim: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row over the records at its slots: (out [R, H, latent_dim], lse [R, H]), both float64.

    records: [slots, Q] of any float dtype, or packed [slots, record bytes] uint8. Negative slots are left out; a row
    without any gives zeros, and an lse of plus infinity.
    """
    rows, heads, _ = q_RHQ.shape
    out_RHC = q_RHQ.new_zeros(rows, heads, latent_dim, dtype=torch.float64)
    lse_RH = q_RHQ.new_full((rows, heads), torch.inf, dtype=torch.float64)
    for row in range(rows):
        slots = slots_RK[row][slots_RK[row] >= 0].long()
        if slots.numel() == 0:
            continue
        chosen = records[slots]
        if chosen.dtype == torch.uint8:
            chosen = unpack_latent(chosen, latent_dim, torch.float32)
        chosen = chosen.double()
        scores_HK = (q_RHQ[row].double() @ chosen.t()) * scale
        lse_RH[row] = scores_HK.logsumexp(-1)
        out_RHC[row] = scores_HK.softmax(-1) @ chosen[:, :latent_dim]
    return out_RHC, lse_RH


def attend_dense(
    q_nope_THn: torch.Tensor,
    q_rope_THR: torch.Tensor,
    records: torch.Tensor,
    block_table_PB: torch.Tensor,
    spans_P4: torch.Tensor,
    w_uk_HnC: torch.Tensor,
    w_uv_HvC: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention of pieces that follow each other over all keys of their sequences: (out [T, H, v], lse [T, H]).

    See `kernels.dsa.dense` for the arguments. The sums are in float64; keys and values of the heads are rounded to the
    weights' dtype, so that weights of float64 give the truth without any rounding.
    """
    out_THv = q_nope_THn.new_zeros(*q_nope_THn.shape[:2], w_uv_HvC.shape[1], dtype=torch.float64)
    lse_TH = q_nope_THn.new_full(q_nope_THn.shape[:2], torch.inf, dtype=torch.float64)
    rank, first = w_uk_HnC.shape[2], 0
    for piece, (_, num_rows, _, num_keys) in enumerate(spans_P4.tolist()):
        rows = slice(first, first + num_rows)
        first += num_rows
        used = block_table_PB[piece, : -(-num_keys // PAGE_TOKENS)].long()
        chosen = records.unflatten(0, (-1, PAGE_TOKENS))[used].flatten(0, 1)[:num_keys]
        if chosen.dtype == torch.uint8:
            chosen = unpack_latent(chosen, rank, torch.float32)
        latent_SC, rope_SR = chosen.double().tensor_split((rank,), dim=1)
        keys_SHn, values_SHv = (
            torch.einsum("sc,hnc->shn", latent_SC, w.double()).to(w.dtype).double() for w in (w_uk_HnC, w_uv_HvC)
        )
        scores_HTS = torch.einsum("thn,shn->hts", q_nope_THn[rows].double(), keys_SHn)
        scores_HTS = scale * (scores_HTS + torch.einsum("thr,sr->hts", q_rope_THR[rows].double(), rope_SR))
        seen_T = torch.arange(num_keys - num_rows, num_keys, device=q_nope_THn.device)
        hidden_TS = torch.arange(num_keys, device=q_nope_THn.device) > seen_T[:, None]
        scores_HTS.masked_fill_(hidden_TS, NEGATIVE_INFINITY)
        lse_TH[rows] = scores_HTS.logsumexp(-1).t()
        out_THv[rows] = torch.einsum("hts,shv->thv", scores_HTS.softmax(-1), values_SHv)
    return out_THv, lse_TH
