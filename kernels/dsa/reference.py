"""DeepSeek Sparse Attention: indexer scores, exact top-k, and attention over what it selected.

Legend: T queries, S keys, H heads, N index heads, D index width, K selected keys, Q query width, V value width,
B independent queries, each with keys of its own.
"""

from __future__ import annotations

import torch

NEGATIVE_INFINITY = float("-inf")


def index_scores(
    q_BND: torch.Tensor, weights_BN: torch.Tensor, keys_BSD: torch.Tensor, key_scales_BS: torch.Tensor | None
) -> torch.Tensor:
    """Lightning-indexer scores: [B, S] float32 = key_scale[s] * sum over heads of weight * relu(q . k).

    Each of B queries has its own keys. Shared keys are given as keys [1, S, D] with q [1, T * N, D]; see
    `index_scores_shared`. weights carry every constant factor (and the query's scale when q is float8).
    """
    dots_BNS = torch.bmm(q_BND, keys_BSD.transpose(1, 2)).float().relu_()
    scores_BS = torch.bmm(weights_BN[:, None, :], dots_BNS)[:, 0]
    return scores_BS if key_scales_BS is None else scores_BS * key_scales_BS


def index_scores_shared(
    q_TND: torch.Tensor, weights_TN: torch.Tensor, keys_SD: torch.Tensor, key_scales_S: torch.Tensor | None
) -> torch.Tensor:
    """`index_scores` of T queries over the same keys: [T, S] float32."""
    num_queries, num_heads, width = q_TND.shape
    dots_XS = q_TND.reshape(num_queries * num_heads, width) @ keys_SD.t()
    dots_TNS = dots_XS.float().relu_().view(num_queries, num_heads, -1)
    scores_TS = torch.bmm(weights_TN[:, None, :], dots_TNS)[:, 0]
    return scores_TS if key_scales_S is None else scores_TS * key_scales_S


def topk_mask(scores_TS: torch.Tensor, k: int) -> torch.Tensor:
    """Mark the k largest scores of each row: [T, S] bool. Equal scores at the cutoff: the lower position wins.

    Rows with fewer than k finite scores mark all of them; a score of minus infinity is never marked. k < S.
    """
    cutoff_T1 = scores_TS.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above_TS = scores_TS > cutoff_T1
    equal_TS = (scores_TS == cutoff_T1) & (scores_TS > NEGATIVE_INFINITY)
    room_T1 = k - above_TS.sum(-1, keepdim=True)
    if bool((equal_TS.sum(-1, keepdim=True) > room_T1).any()):
        equal_TS &= equal_TS.cumsum(-1) <= room_T1
    return above_TS | equal_TS


def topk_positions(scores_BS: torch.Tensor, k: int) -> torch.Tensor:
    """Positions of the k largest scores of each row: [B, k] int64, in no order. Every row has at least k finite scores.

    Equal scores at the cutoff: the lower position wins.
    """
    values_BK, positions_BK = scores_BS.topk(k, dim=-1, sorted=False)
    cutoff_B1 = values_BK.amin(-1, keepdim=True)
    tied_B = (scores_BS == cutoff_B1).sum(-1) > (values_BK == cutoff_B1).sum(-1)
    if bool(tied_B.any()):
        rows = tied_B.nonzero()[:, 0]
        mask_XS = topk_mask(scores_BS[rows], k)
        positions_BK[rows] = mask_XS.nonzero()[:, 1].view(-1, k)
    return positions_BK


def attend_rows(
    q_BHQ: torch.Tensor,
    records_BSQ: torch.Tensor,
    value_dim: int,
    scale: float,
    hidden_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention in latent space, each query over records of its own: [B, H, value_dim].

    records: [B, S, Q]; the first value_dim numbers of a record are its value. hidden: [B, S] bool marks records that
    the query must not see (None: sees all). Softmax in float32.
    """
    scores_BHS = torch.bmm(q_BHQ, records_BSQ.transpose(1, 2)).float().mul_(scale)
    if hidden_BS is not None:
        scores_BHS.masked_fill_(hidden_BS[:, None, :], NEGATIVE_INFINITY)
    weights_BHS = torch.softmax(scores_BHS, dim=-1).to(q_BHQ.dtype)
    return torch.bmm(weights_BHS, records_BSQ[..., :value_dim])


def attend_shared(
    q_HTQ: torch.Tensor, keys_HSQ: torch.Tensor, values_HSV: torch.Tensor, scale: float, hidden_TS: torch.Tensor
) -> torch.Tensor:
    """Attention of T queries over the same keys: [H, T, V]. hidden: [T, S] bool, what each query must not see."""
    scores_HTS = torch.bmm(q_HTQ, keys_HSQ.transpose(1, 2)).float().mul_(scale)
    scores_HTS.masked_fill_(hidden_TS, NEGATIVE_INFINITY)
    weights_HTS = torch.softmax(scores_HTS, dim=-1).to(q_HTQ.dtype)
    return torch.bmm(weights_HTS, values_HSV)
