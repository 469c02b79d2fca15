"""Float8 of activations, one scale for each row and 128 columns; the truth is `reference.quantise_activations`.

Legend: M rows, K columns, G = K / 128 groups of a row.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build
from kernels.lang import pow2_ceil, to_float8

NUMBERS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@triton.jit
def scale_of(b_absmax, UE8M0: tl.constexpr):
    """Scales of groups with the largest magnitudes `b_absmax`, float32; with UE8M0 the next powers of two."""
    b_s = tl.maximum(b_absmax, 1e-4) * (1.0 / 448.0)
    if UE8M0:
        b_s = pow2_ceil(b_s)
    return b_s


@triton.jit
def scaled_float8(b_x, b_s, UE8M0: tl.constexpr):
    """Float8 of b_x / b_s, both float32; b_s comes from `scale_of`."""
    if UE8M0:
        # a power of two has an exact reciprocal, by its exponent, and the product with it is exact
        b_bits = (254 << 23) - b_s.to(tl.int32, bitcast=True)
        b_x = b_x * b_bits.to(tl.float32, bitcast=True)
    else:
        b_x = tl.div_rn(b_x, b_s)
    return to_float8(b_x)


@triton.jit
def quantise_kernel(
    x, codes, scales, num_rows, num_groups, x_row, UE8M0: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr
):
    """One program for BM rows and BG groups of each."""
    o_m = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    o_g = tl.program_id(1) * BG + tl.arange(0, BG)
    o_k = tl.program_id(1) * BG * 128 + tl.arange(0, BG * 128)
    m_x = (o_m < num_rows)[:, None] & (o_k < num_groups * 128)[None, :]
    b_x = tl.load(x + o_m[:, None] * x_row + o_k[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_x = tl.reshape(b_x, (BM, BG, 128))
    b_s = scale_of(tl.max(tl.abs(b_x), 2), UE8M0)
    b_q = tl.reshape(scaled_float8(b_x, b_s[:, :, None], UE8M0), (BM, BG * 128))
    tl.store(codes + o_m[:, None] * (num_groups * 128) + o_k[None, :], b_q, mask=m_x)
    m_s = (o_m < num_rows)[:, None] & (o_g < num_groups)[None, :]
    tl.store(scales + o_m[:, None] * num_groups + o_g[None, :], b_s, mask=m_s)


@functools.cache
def _build(number: str, *, ue8m0: bool, aligned: bool) -> Build:
    return Build(
        kernel=quantise_kernel,
        types={"x": f"*{number}", "codes": "*fp8e4nv", "scales": "*fp32", "x_row": "i64"},
        constants={"UE8M0": ue8m0, "BM": 8, "BG": 4},
        divisible=("x_row",) if aligned else (),
    )


def configs() -> list[Build]:
    """Rows of bfloat16 and float32, at strides that are multiples of 16."""
    return [_build(number, ue8m0=ue8m0, aligned=True) for number in NUMBERS.values() for ue8m0 in (True, False)]


def quantise_activations(x_MK: torch.Tensor, *, ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows in groups of 128: (float8_e4m3fn [M, K], float32 scales [M, G]), both contiguous.

    x_MK: bfloat16 or float32, numbers of a row side by side, rows at any stride; K a multiple of 128. The bytes are
    those of `reference.quantise_activations`. A number that is not finite spoils its own group only.
    """
    num_rows, width = x_MK.shape
    assert width % QUANT_BLOCK == 0, f"rows of {width} numbers, must be a multiple of {QUANT_BLOCK}"
    assert x_MK.dtype in NUMBERS, f"rows of {x_MK.dtype}, must be bfloat16 or float32"
    assert x_MK.stride(1) == 1 or not x_MK.numel(), f"numbers of a row are {x_MK.stride(1)} apart, must be side by side"
    num_groups = width // QUANT_BLOCK
    codes_MK = torch.empty(x_MK.shape, dtype=torch.float8_e4m3fn, device=x_MK.device)
    scales_MG = torch.empty((num_rows, num_groups), dtype=torch.float32, device=x_MK.device)
    build = _build(NUMBERS[x_MK.dtype], ue8m0=ue8m0, aligned=x_MK.stride(0) % 16 == 0)
    grid = (triton.cdiv(num_rows, build.constants["BM"]), triton.cdiv(num_groups, build.constants["BG"]))
    build.launch(
        grid, x=x_MK, codes=codes_MK, scales=scales_MG,
        num_rows=num_rows, num_groups=num_groups, x_row=x_MK.stride(0),
    )  # fmt: skip
    return codes_MK, scales_MG
