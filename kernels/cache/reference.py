"""What one token leaves in the cache, and what it asks of it, step by step.

Legend: T tokens, Q query latent width, C latent width, R rotated width, X index width (128), G groups of 128,
P = R / 2 pairs, H heads, n unrotated width, N index heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.cache.layout import pack_latent, quantise_index_vectors, write_index_keys
from kernels.norm.reference import rms_norm
from kernels.quant.reference import quantise_activations
from kernels.rope.reference import rotate_first, rotate_interleaved


@dataclass(frozen=True, slots=True)
class KeyNorms:
    """Float32 weights of one layer's norms: q [Q], latent [C], key and key_bias [X] of the index key's layer norm."""

    q: torch.Tensor
    latent: torch.Tensor
    key: torch.Tensor
    key_bias: torch.Tensor
    eps: float
    key_eps: float


@dataclass(frozen=True, slots=True)
class QueryLatent:
    """The normed query latent [T, Q]; where it was to be quantised, codes [T, Q] float8_e4m3fn and scales [T, G]."""

    normed: torch.Tensor
    codes: torch.Tensor | None
    scales: torch.Tensor | None


def write_cache(
    x: torch.Tensor,
    norms: KeyNorms,
    rotations_TP2: torch.Tensor,
    slots_T: torch.Tensor,
    records: torch.Tensor,
    pages: torch.Tensor,
    *,
    quantise: bool,
) -> QueryLatent:
    """Norm the query latent [T, Q] and write latent record and index key of each token whose slot is not negative.

    Arguments as those of `kernels.cache.write.write_cache`.
    """
    widths = (norms.q.shape[0], norms.key.shape[0], norms.latent.shape[0], 2 * rotations_TP2.shape[1])
    query, index_key, latent, rope_key = x.split(widths, dim=-1)
    rotations_TP = torch.view_as_complex(rotations_TP2)
    latent = rms_norm(latent, norms.latent, norms.eps)
    rope_key = rotate_interleaved(rope_key[:, None], rotations_TP)[:, 0]
    index_key = torch.nn.functional.layer_norm(
        index_key.float(), norms.key.shape, norms.key, norms.key_bias, norms.key_eps
    ).to(x.dtype)
    index_key = rotate_first(index_key[:, None], rotations_TP)[:, 0]
    real = slots_T >= 0
    if records.dtype == torch.uint8:
        records[slots_T[real]] = pack_latent(latent, rope_key)[real]
    else:
        records[slots_T[real]] = torch.cat((latent, rope_key), dim=-1)[real].to(records.dtype)
    write_index_keys(pages, slots_T[real].long(), index_key[real])
    normed = rms_norm(query, norms.q, norms.eps)
    codes, scales = quantise_activations(normed, ue8m0=True) if quantise else (None, None)
    return QueryLatent(normed, codes, scales)


def prepare_queries(
    q: torch.Tensor,
    index_weights_TN: torch.Tensor,
    rotations_TP2: torch.Tensor,
    latent_q_THQ: torch.Tensor,
    *,
    num_heads: int,
    nope_dim: int,
    index_heads: int,
    weight_scale: float,
    padded_heads: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the rotated parts [T, H, R] into `latent_q`; return index queries and their head weights.

    Arguments and results as those of `kernels.cache.queries.prepare_queries`.
    """
    rotations_TP = torch.view_as_complex(rotations_TP2)
    rope_dim = 2 * rotations_TP.shape[1]
    main, index = q.tensor_split((num_heads * (nope_dim + rope_dim),), dim=-1)
    main = main.unflatten(-1, (num_heads, -1))
    latent_q_THQ[..., -rope_dim:] = rotate_interleaved(main[..., nope_dim:], rotations_TP)
    codes, scales_TN = quantise_index_vectors(rotate_first(index.unflatten(-1, (index_heads, -1)), rotations_TP))
    weights_TN = index_weights_TN * weight_scale * scales_TN
    missing = (padded_heads or index_heads) - index_heads
    if missing:
        zeros = codes.view(torch.uint8).new_zeros(codes.shape[0], missing, codes.shape[2])
        codes = torch.cat((codes.view(torch.uint8), zeros), dim=1).view(codes.dtype)
        weights_TN = torch.nn.functional.pad(weights_TN, (0, missing))
    return codes, weights_TN
