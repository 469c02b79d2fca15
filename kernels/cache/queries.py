"""Queries of one layer made ready: rotated parts of the main heads, and index queries rotated, turned and quantised.

One launch for both, since each alone is far below what a launch costs when few tokens decode.

Legend: T tokens, H heads, n unrotated width, R rotated width, C latent width, N index heads, X index width (128),
P = R / 2 pairs.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build, type_name
from kernels.quant.device import quantise_groups
from kernels.quant.hadamard import hadamard_signs
from kernels.rope.device import rotate, rotate_pairs

HEADS = 32
"""Main heads of one program."""


@triton.jit
def half_split_hadamard(
    b_real, b_imaginary, b_rest, rotations, signs, o_row, m_row, number: tl.constexpr,
    R: tl.constexpr, X: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate the first R of X numbers in half-split pairs, then all of them by the Hadamard matrix: float32 [M, X].

    real and imaginary: [M, HALF] float32, zero past R / 2; rest: [M, X] float32, zero before R. o_row: row of
    `rotations` for each row. Rounded to `number` after the first, to bfloat16 before and after the second, as the
    official demo does.
    """
    o_p = tl.arange(0, HALF)
    o_x = tl.arange(0, X)
    m_p = o_p < R // 2
    m_turn = m_row[:, None] & m_p[None, :]
    p_turn = rotations + o_row[:, None] * R + 2 * o_p[None, :]
    b_cos = tl.load(p_turn, mask=m_turn, other=0.0)
    b_sin = tl.load(p_turn + 1, mask=m_turn, other=0.0)
    b_real, b_imaginary = rotate(b_real, b_imaginary, b_cos, b_sin)
    p_first = signs + o_p[:, None] * X + o_x[None, :]
    b_h = tl.load(p_first, mask=m_p[:, None], other=0.0)
    b_y = tl.dot(b_real.to(number).to(tl.bfloat16), b_h)
    b_h = tl.load(p_first + (R // 2) * X, mask=m_p[:, None], other=0.0)
    b_y = tl.dot(b_imaginary.to(number).to(tl.bfloat16), b_h, b_y)
    b_h = tl.load(signs + o_x[:, None] * X + o_x[None, :])
    b_y = tl.dot(b_rest.to(tl.bfloat16), b_h, b_y)
    return (b_y * (X**-0.5)).to(tl.bfloat16).to(tl.float32)


@triton.jit
def query_kernel(
    q, weights, rotations, signs, latent_q, codes, head_weights, q_row, weight_scale,
    H: tl.constexpr, NOPE: tl.constexpr, R: tl.constexpr, C: tl.constexpr, N: tl.constexpr, X: tl.constexpr,
    PADDED: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, INDEX_HEADS: tl.constexpr,
):  # fmt: skip
    """A program is one token's next HEADS main heads, or its next INDEX_HEADS index heads."""
    i_t = tl.program_id(0).to(tl.int64)
    i_part = tl.program_id(1)
    MAIN: tl.constexpr = (H + HEADS - 1) // HEADS
    p_q = q + i_t * q_row
    if i_part < MAIN:
        o_h = i_part * HEADS + tl.arange(0, HEADS)
        o_r = tl.arange(0, 2 * HALF)
        m_q = (o_h[:, None] < H) & (o_r[None, :] < R)
        b_q = tl.load(p_q + o_h[:, None] * (NOPE + R) + NOPE + o_r[None, :], mask=m_q, other=0.0).to(tl.float32)
        b_turn = tl.load(rotations + i_t * R + o_r, mask=o_r < R, other=0.0)
        b_q = rotate_pairs(b_q, b_turn, HEADS, HALF)
        p_out = latent_q + i_t * H * (C + R) + o_h[:, None] * (C + R) + C + o_r[None, :]
        tl.store(p_out, b_q.to(latent_q.dtype.element_ty), mask=m_q)
    else:
        o_n = (i_part - MAIN) * INDEX_HEADS + tl.arange(0, INDEX_HEADS)
        m_n = o_n < N
        o_p = tl.arange(0, HALF)
        o_x = tl.arange(0, X)
        p_row = p_q + H * (NOPE + R) + o_n[:, None] * X
        m_p = m_n[:, None] & (o_p[None, :] < R // 2)
        b_real = tl.load(p_row + o_p[None, :], mask=m_p, other=0.0).to(tl.float32)
        b_imaginary = tl.load(p_row + R // 2 + o_p[None, :], mask=m_p, other=0.0).to(tl.float32)
        m_rest = m_n[:, None] & (o_x[None, :] >= R)
        b_rest = tl.load(p_row + o_x[None, :], mask=m_rest, other=0.0).to(tl.float32)
        o_row = tl.zeros([INDEX_HEADS], tl.int64) + i_t
        b_y = half_split_hadamard(
            b_real, b_imaginary, b_rest, rotations, signs, o_row, m_n, q.dtype.element_ty, R, X, HALF
        )
        b_code, b_scale = quantise_groups(b_y)
        b_w = tl.load(weights + i_t * N + o_n, mask=m_n, other=0.0)
        # heads that are only there to fill up are zero, and weigh nothing
        m_n = o_n < PADDED
        tl.store(codes + (i_t * PADDED + o_n[:, None]) * X + o_x[None, :], b_code, mask=m_n[:, None])
        tl.store(head_weights + i_t * PADDED + o_n, b_w * weight_scale * b_scale, mask=m_n)


@functools.cache
def _build(number: str, heads: int, nope: int, rope: int, latent: int, index_heads: int, padded: int) -> Build:
    return Build(
        kernel=query_kernel,
        types={
            "q": f"*{number}", "weights": "*fp32", "rotations": "*fp32", "signs": "*bf16", "latent_q": f"*{number}",
            "codes": "*fp8e4nv", "head_weights": "*fp32", "weight_scale": "fp32", "q_row": "i64",
        },
        constants={
            "H": heads, "NOPE": nope, "R": rope, "C": latent, "N": index_heads, "X": QUANT_BLOCK,
            "PADDED": padded, "HALF": max(16, triton.next_power_of_2(rope // 2)), "HEADS": HEADS,
            "INDEX_HEADS": index_rows(padded),
        },
        divisible=("q_row",) if _row_width(heads, nope, rope, index_heads) % 16 == 0 else (),
        num_warps=4,
        tensor_cores=padded >= 64,
    )  # fmt: skip


def configs() -> list[Build]:
    """The builds for DeepSeek-V3.2's widths."""
    return [_build(number, 128, 128, 64, 512, 64, 64) for number in ("bf16", "fp32")]


def _row_width(heads: int, nope: int, rope: int, index_heads: int) -> int:
    return heads * (nope + rope) + index_heads * QUANT_BLOCK


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
    """Rotate the main heads' queries into place, and make index queries and their head weights.

    q: [T, H * (n + R) + N * 128] bfloat16 or float32, contiguous: what q_b gives. index_weights: [T, N] float32,
    contiguous. rotations: [T, P, 2] float32, cosine and sine. latent_q: [T, H, C + R] contiguous, q's dtype; its last R
    columns are written here, the first C are the absorbed product's. Returns index queries [T, N, 128] float8_e4m3fn
    and head weights [T, N] float32: index_weights * weight_scale * the query's scale. padded_heads: give so many heads,
    those past N zero.
    """
    num_tokens, pairs, _ = rotations_TP2.shape
    width = latent_q_THQ.shape[2] - 2 * pairs
    index_dim = QUANT_BLOCK
    assert q.shape == (num_tokens, _row_width(num_heads, nope_dim, 2 * pairs, index_heads)) and q.is_contiguous()
    assert index_weights_TN.shape == (num_tokens, index_heads) and index_weights_TN.is_contiguous()
    assert rotations_TP2.is_contiguous() and rotations_TP2.dtype == torch.float32
    assert latent_q_THQ.shape[:2] == (num_tokens, num_heads) and latent_q_THQ.is_contiguous()
    assert latent_q_THQ.dtype == q.dtype
    padded = padded_heads or index_heads
    assert padded >= index_heads, (padded, index_heads)
    codes = torch.empty(num_tokens, padded, index_dim, dtype=torch.float8_e4m3fn, device=q.device)
    head_weights = torch.empty(num_tokens, padded, dtype=torch.float32, device=q.device)
    grid = (num_tokens, triton.cdiv(num_heads, HEADS) + triton.cdiv(padded, index_rows(padded)))
    _build(type_name(q), num_heads, nope_dim, 2 * pairs, width, index_heads, padded).launch(
        grid,
        q=q, weights=index_weights_TN, rotations=rotations_TP2, signs=hadamard_signs(index_dim, q.device),
        latent_q=latent_q_THQ, codes=codes, head_weights=head_weights, q_row=q.stride(0), weight_scale=weight_scale,
    )  # fmt: skip
    return codes, head_weights


def index_rows(index_heads: int) -> int:
    """Index heads of one program: 64 fill a warp group's matrix product; the least that one takes is 16."""
    return min(64, max(16, int(triton.next_power_of_2(index_heads))))
