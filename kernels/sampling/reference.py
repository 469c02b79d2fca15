"""The mathematics of sampling in plain PyTorch: penalties, masks, filters, the choice and log-probabilities.

The choice is argmax(scaled logit + Gumbel noise) over the tokens that the filters keep, which draws each with its
renormalised probability (Gumbel-max). Tokens are ordered by logit, largest first, and the lower id first where logits
are equal. Each filter keeps a beginning of that order:

    top_k    the first k
    top_p    those before which less than top_p of the mass lies; the mass is that of the top_k tokens
    min_p    those with at least min_p times the largest probability

Nothing here is random, and nothing depends on the other rows of a batch: operations are element by element, exact
sums, or comparisons. Sums of masses are exact because each mass is rounded to a multiple of 2^-35 of the largest.

Legend: N rows, V vocabulary, C candidate tokens of a row in ascending id order, K chosen tokens, W words of a bitmask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.sampling.noise import NOISE_MAX, NOISE_MIN, gumbel_noise, row_keys
from kernels.sampling.rows import Adjustments, Draws

MASS_STEP = 2.0**-35
MAX_VOCAB = 2**18
"""With this many masses of at most 1, sums of multiples of `MASS_STEP` are exact in float64 (53 bits)."""

NEGLIGIBLE = -25.0
"""A token scaled this far below the best can neither win nor weigh.

Noise spans `NOISE_MAX - NOISE_MIN` = 20.2, so that a lower token loses to the best one whatever noise both get; and
exp(-25) is less than half of `MASS_STEP`, so that its mass rounds to 0.
"""
assert NOISE_MIN - NOISE_MAX > NEGLIGIBLE

_ID_BITS = 32
_ID_MASK = (1 << _ID_BITS) - 1
_NEVER = float("-inf")


def penalise_(
    x_V: Tensor, ids_K: Tensor, counts_K: Tensor, repetition: float, presence: float, frequency: float
) -> None:
    """Lower one row's logits of tokens that were seen, in place.

    x_V: float32. ids_K: int64, the distinct tokens of prompt and output. counts_K: float32, how often each is in the
    output. The repetition penalty divides a positive logit and multiplies another (CTRL, arXiv:1909.05858); then
    frequency times the count, and presence where the count is not 0, are subtracted (as the OpenAI API defines them).
    """
    seen_K = x_V[ids_K]
    if repetition != 1.0:
        seen_K = torch.where(seen_K > 0, seen_K / repetition, seen_K * repetition)
    seen_K -= frequency * counts_K + presence * (counts_K > 0)
    # A penalty near 0 would lift a logit to infinity, which has no probability.
    x_V[ids_K] = seen_K.clamp_(max=torch.finfo(torch.float32).max)


def allowed_tokens(bitmask_W: Tensor, vocab_size: int) -> Tensor:
    """Bool [V] of an int32 bitmask: token t is allowed if bit t % 32 of word t // 32 is set."""
    places = torch.arange(32, dtype=torch.int32, device=bitmask_W.device)
    return (bitmask_W[:, None] >> places & 1).bool().flatten()[:vocab_size]


def forbid_(x_V: Tensor, bitmask_W: Tensor) -> None:
    """Set the logits of what the bitmask (see `allowed_tokens`) does not allow to -inf, in place."""
    if x_V.device.type == "cpu":
        # numpy unpacks bits faster
        bits_V = np.unpackbits(bitmask_W.numpy().view(np.uint8), bitorder="little", count=x_V.shape[0])
        x_V.masked_fill_(torch.from_numpy(bits_V) == 0, _NEVER)
        return
    x_V.masked_fill_(~allowed_tokens(bitmask_W, x_V.shape[0]), _NEVER)


def greedy(x_NV: Tensor) -> Tensor:
    """Ids [N] int64 of the largest logits, the lowest id of equals. A NaN counts as largest."""
    if x_NV.device.type == "cpu":
        # numpy's argmax uses vector instructions and is 5 to 10 times faster.
        return torch.from_numpy(x_NV.numpy().argmax(-1))
    return x_NV.argmax(-1)


def top_tokens(x_NV: Tensor, k: int) -> Tensor:
    """Ids [N, k] int64 of the k largest logits, in order."""
    # One integer holds logit and id, so that equal logits are ordered too. Adding 0 makes -0 equal to +0; flipping the
    # low 31 bits of a negative float gives an integer of the same order.
    bits_NV = (x_NV + 0.0).view(torch.int32)
    bits_NV ^= (bits_NV >> 31) & 0x7FFFFFFF
    ids_V = torch.arange(x_NV.shape[1], device=x_NV.device)
    keys_NV = (bits_NV.long() << _ID_BITS) + (_ID_MASK - ids_V)
    return _ID_MASK - (keys_NV.topk(k, dim=-1).values & _ID_MASK)


def restrict_to_top_k(x_NV: Tensor, top_k_N: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each row's first top_k_N tokens: logits [N, C] and ids [N, C] int64, C the largest top_k.

    A row of a smaller top_k keeps its places, with logit -inf.
    """
    ids_NC = top_tokens(x_NV, min(max(top_k_N), x_NV.shape[1]))
    rank_C = torch.arange(ids_NC.shape[1], device=x_NV.device)
    dropped_NC = rank_C >= torch.tensor(top_k_N, device=x_NV.device)[:, None]
    x_NC = x_NV.gather(1, ids_NC).masked_fill_(dropped_NC, _NEVER)
    ids_NC, order_NC = ids_NC.sort(dim=-1)
    return x_NC.gather(1, order_NC), ids_NC


def restrict_to_contenders(x_1V: Tensor, temperature_1: Tensor) -> tuple[Tensor, Tensor]:
    """One row's tokens that are not `NEGLIGIBLE`: logits [1, C] and ids [1, C] int64. Never changes a choice."""
    ids_C = (scaled(x_1V, temperature_1)[0] >= NEGLIGIBLE).nonzero()[:, 0]
    return x_1V.index_select(1, ids_C), ids_C[None]


def scaled(x_NC: Tensor, temperature_N: Tensor) -> Tensor:
    """Logits [N, C] float32 relative to the row's largest, over the temperature: at most 0, and 0 for the largest."""
    return (x_NC - x_NC.amax(-1, keepdim=True)).div_(temperature_N[:, None])


def choose(
    x_NC: Tensor,
    ids_NC: Tensor,
    keys_N2: Tensor,
    temperature_N: Tensor,
    top_p_N: Tensor | None = None,
    log_min_p_N: Tensor | None = None,
) -> Tensor:
    """Draw one token a row: ids [N] int64.

    x_NC: float32 logits, at least one of each row finite, none NaN or +inf. ids_NC: int64 [N, C] or [1, C], ascending.
    keys_N2: `row_keys`. temperature_N: float32, above 0. top_p_N: float64 in (0, 1]. log_min_p_N: float64, ln(min_p).
    """
    y_NC = scaled(x_NC, temperature_N)
    score_NC = y_NC + gumbel_noise(keys_N2, ids_NC.int())
    if log_min_p_N is not None:
        score_NC.masked_fill_(y_NC.double() < log_min_p_N[:, None], _NEVER)
    winner_N = greedy(score_NC)
    if top_p_N is not None:
        winner_N = _within_nucleus(x_NC, y_NC, score_NC, winner_N, top_p_N)
    return ids_NC.expand_as(x_NC).gather(1, winner_N[:, None])[:, 0]


def _within_nucleus(x_NC: Tensor, y_NC: Tensor, score_NC: Tensor, winner_N: Tensor, top_p_N: Tensor) -> Tensor:
    """Columns [N] of the best score among the tokens that top_p keeps; `winner_N` is the best of all.

    Needs no sort: a winner is outside if the mass before it reaches top_p of the whole. Then all tokens from it on are
    outside as well, and the best of those before it is tried; the tail shrinks by a random part each time.
    """
    mass_NC = y_NC.double().exp_().div_(MASS_STEP).round_()
    limit_N = mass_NC.sum(-1).mul_(top_p_N)
    column_C = torch.arange(x_NC.shape[1], device=x_NC.device)
    result_N, rows = winner_N, torch.arange(x_NC.shape[0], device=x_NC.device)
    while True:
        x_N1 = x_NC.gather(1, winner_N[:, None])
        before_NC = (x_NC == x_N1).logical_and_(column_C < winner_N[:, None]).logical_or_(x_NC > x_N1)
        outside = ((mass_NC * before_NC).sum(-1) >= limit_N).nonzero()[:, 0]
        if not len(outside):
            return result_N
        rows, limit_N, x_NC, mass_NC = rows[outside], limit_N[outside], x_NC[outside], mass_NC[outside]
        score_NC = score_NC[outside].masked_fill_(~before_NC[outside], _NEVER)
        winner_N = greedy(score_NC)
        result_N[rows] = winner_N


def log_probabilities(x_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """Natural log-probabilities [N, K] float32 of tokens ids_NK (int64) under softmax(x_NV), computed in float64."""
    return torch.log_softmax(x_NV, dim=-1, dtype=torch.float64).gather(1, ids_NK).float()


def adjust_(x_NV: Tensor, adjustments: Adjustments) -> None:
    """Change logits in place, row by row: penalties, then bias, then what is forbidden or masked."""
    a = adjustments
    for number, row in enumerate(a.rows.tolist()):
        seen, bias, forbidden = (
            slice(*start[number : number + 2].tolist()) for start in (a.seen_start, a.bias_start, a.forbidden_start)
        )
        strengths = (float(values[number]) for values in (a.repetition, a.presence, a.frequency))
        penalise_(x_NV[row], a.seen_ids[seen].long(), a.seen_counts[seen], *strengths)
        x_NV[row].index_add_(0, a.bias_ids[bias].long(), a.bias_values[bias])
        x_NV[row].index_fill_(0, a.forbidden_ids[forbidden].long(), _NEVER)
        mask = int(a.mask_rows[number])
        if mask >= 0:
            x_NV[row].masked_fill_(~allowed_tokens(a.masks[mask], x_NV.shape[1]), _NEVER)


def sample_tokens(x_NV: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Choose one token a row: (ids [N] int64, largest logits [N]); where those are not finite an id means nothing."""
    tokens_N, largest_N = greedy(x_NV), x_NV.amax(-1)
    for n in range(x_NV.shape[0]):
        x_1V, row = x_NV[n : n + 1], slice(n, n + 1)
        if float(draws.temperature[n]) == 0 or not bool(largest_N[n].isfinite()):
            continue
        ids_1C = torch.arange(x_NV.shape[1], device=x_NV.device)[None]
        if top_k := int(draws.top_k[n]):
            x_1V, ids_1C = restrict_to_top_k(x_1V, [top_k])
        filters = draws.temperature[row], draws.top_p[row], draws.log_min_p[row]
        keys_12 = row_keys(draws.seeds[row].clone(), draws.positions[row])
        tokens_N[n] = choose(x_1V, ids_1C, keys_12, *filters)[0]
    return tokens_N, largest_N
