"""The packed float8 cache, byte by byte; written here and nowhere else.

A page holds 64 tokens (one block). Let C be the latent width (512 in V3.2), R the rotated width (64), D the index
key's width (128).

Latent record, one per token, C + C/128*4 + 2*R bytes (656); a page is 64 records one after the other (41,984):

    byte 0             C float8_e4m3fn numbers: the normed latent
    byte C             C/128 float32 scales; tile j covers numbers 128*j to 128*j + 127; value = float8 * scale
    byte C + C/128*4   R bfloat16 numbers: the rotated key, interleaved order, unquantised

Index-key page, 64 * (D + 4) bytes (8,448), not interleaved by token:

    byte 0             64 keys of D float8_e4m3fn numbers, Hadamard-rotated
    byte 64 * D        64 float32 scales, one per key

All scales are powers of two (rounded up), from absmax clamped to at least 1e-4 and divided by 448. This is the layout
of FlashMLA's and DeepGEMM's kernels.

Legend: T tokens, B rows, S records.
"""

from __future__ import annotations

import torch

from baleen.model_spec import QUANT_BLOCK
from kernels.quant.reference import hadamard, quantise_activations

PAGE_TOKENS = 64


def latent_record_bytes(latent_dim: int, rope_dim: int) -> int:
    """Bytes of one packed latent record; latent_dim is a multiple of 128."""
    return latent_dim + latent_dim // QUANT_BLOCK * 4 + rope_dim * 2


def index_page_bytes(index_dim: int) -> int:
    """Bytes of one packed page of 64 index keys; index_dim is 128."""
    return PAGE_TOKENS * (index_dim + 4)


def pack_latent(latent_TC: torch.Tensor, rotated_TR: torch.Tensor) -> torch.Tensor:
    """Pack normed latents [T, C] and rotated keys [T, R] into records: [T, record bytes] uint8."""
    quantised_TC, scales = quantise_activations(latent_TC, ue8m0=True)
    return torch.cat(
        (
            quantised_TC.view(torch.uint8),
            scales.contiguous().view(torch.uint8),
            rotated_TR.to(torch.bfloat16).contiguous().view(torch.uint8),
        ),
        dim=-1,
    )


def unpack_latent(records: torch.Tensor, latent_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Records [..., record bytes] uint8 back to [..., latent_dim + rope_dim] numbers of `dtype`."""
    scales_end = latent_dim + latent_dim // QUANT_BLOCK * 4
    quantised = records[..., :latent_dim].contiguous().view(torch.float8_e4m3fn).to(dtype)
    scales = records[..., latent_dim:scales_end].contiguous().view(torch.float32).to(dtype)
    latent = quantised.unflatten(-1, (-1, QUANT_BLOCK)) * scales[..., None]
    rotated = records[..., scales_end:].contiguous().view(torch.bfloat16).to(dtype)
    return torch.cat((latent.flatten(-2), rotated), dim=-1)


def quantise_index_vectors(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index queries or keys [..., 128]: Hadamard rotation in bfloat16, then float8 with one scale: (q, scale [...])."""
    quantised, scales = quantise_activations(hadamard(x.to(torch.bfloat16)), ue8m0=True)
    return quantised, scales[..., 0]


def write_index_keys(pages: torch.Tensor, slots_T: torch.Tensor, keys_TD: torch.Tensor) -> None:
    """Quantise keys [T, D] and write them to `pages` [num_pages, page bytes] uint8 at slots [T] (page * 64 + place)."""
    quantised_TD, scales_T = quantise_index_vectors(keys_TD)
    width = keys_TD.shape[-1]
    page_T, place_T = slots_T // PAGE_TOKENS, slots_T % PAGE_TOKENS
    _key_view(pages, width).index_put_((page_T, place_T), quantised_TD.view(torch.uint8))
    _scale_view(pages, width).index_put_((page_T, place_T), scales_T.contiguous().view(torch.uint8).view(-1, 4))


def read_index_keys(pages_BP: torch.Tensor, index_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages [n, page bytes] to float32 key numbers [n * 64, D], before scaling, and their scales [n * 64]."""
    keys = _key_view(pages_BP, index_dim).reshape(-1, index_dim).view(torch.float8_e4m3fn).float()
    scales = _scale_view(pages_BP, index_dim).contiguous().view(torch.float32).reshape(-1)
    return keys, scales


def _key_view(pages: torch.Tensor, width: int) -> torch.Tensor:
    keys: torch.Tensor = pages[:, : PAGE_TOKENS * width].unflatten(1, (PAGE_TOKENS, width))
    return keys


def _scale_view(pages: torch.Tensor, width: int) -> torch.Tensor:
    scales: torch.Tensor = pages[:, PAGE_TOKENS * width :].unflatten(1, (PAGE_TOKENS, 4))
    return scales
