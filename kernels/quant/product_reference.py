"""Truth of the matrix products: float32 on the numbers that the kernels are given.

Legend: M rows, N columns of the product, K inner columns, G = K / 128, a = N / 128 rounded up, T tokens, H heads,
n width of a head's query, C latent width, v width of a head's value.
"""

from __future__ import annotations

import torch

from baleen.model_spec import QUANT_BLOCK
from kernels.quant.weights import dequantise_weight


def dequantise_rows(x_MK: torch.Tensor, scales_MG: torch.Tensor) -> torch.Tensor:
    """Float8 rows times their scales, one for each 128 columns: float32 [M, K]."""
    groups_MGk: torch.Tensor = x_MK.float().unflatten(-1, (-1, QUANT_BLOCK))
    return (groups_MGk * scales_MG[..., None]).flatten(-2)


def float8_product(
    x_MK: torch.Tensor, x_scales_MG: torch.Tensor, w_NK: torch.Tensor, w_scales_aG: torch.Tensor
) -> torch.Tensor:
    """x times w transposed, both dequantised: summed in float32 and then rounded to bfloat16, [M, N]."""
    return (dequantise_rows(x_MK, x_scales_MG) @ dequantise_weight(w_NK, w_scales_aG).t()).to(torch.bfloat16)


def absorb_queries(q_THn: torch.Tensor, w_uk_HnC: torch.Tensor) -> torch.Tensor:
    """Each head's query times its key up-projection, summed in float32: [T, H, C] in q's dtype."""
    return torch.einsum("thn,hnc->thc", q_THn.float(), w_uk_HnC.float()).to(q_THn.dtype)


def expand_values(latent_THC: torch.Tensor, w_uv_HvC: torch.Tensor) -> torch.Tensor:
    """Each head's latent output times its value up-projection, summed in float32: [T, H, v] in latent's dtype."""
    return torch.einsum("thc,hvc->thv", latent_THC.float(), w_uv_HvC.float()).to(latent_THC.dtype)
