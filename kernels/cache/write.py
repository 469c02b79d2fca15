"""What one token leaves in the cache, and its query latent: norms, rotations, quantisation and the writes, one launch.

Legend: T tokens, Q query latent width, C latent width, R rotated width, X index width (128), G groups of 128.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from baleen.model_spec import QUANT_BLOCK
from kernels.builds import Build, type_name
from kernels.cache.layout import PAGE_TOKENS, index_page_bytes, latent_record_bytes
from kernels.cache.queries import half_split_hadamard
from kernels.cache.reference import KeyNorms, QueryLatent
from kernels.norm.rms import empty_quantised, rms_row
from kernels.quant.device import quantise_groups
from kernels.quant.hadamard import hadamard_signs
from kernels.rope.device import rotate_pairs

KEY_TOKENS = 16
"""Tokens whose index keys one program makes: the fewest rows of a matrix product."""


@triton.jit
def write_kernel(
    x, q_weight, latent_weight, key_weight, key_bias, rotations, slots, signs,
    normed, codes, scales, record_codes, record_scales, record_numbers, page_codes, page_scales,
    num_tokens, x_row, eps, key_eps,
    Q: tl.constexpr, C: tl.constexpr, R: tl.constexpr, X: tl.constexpr, RECORD: tl.constexpr, PACKED: tl.constexpr,
    QUANTISE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, HALF: tl.constexpr, KEY_TOKENS: tl.constexpr,
):  # fmt: skip
    """The first T programs norm query latents, the next T write records, the rest index keys of KEY_TOKENS tokens."""
    i_p = tl.program_id(0)
    number: tl.constexpr = x.dtype.element_ty
    if i_p < num_tokens:
        i_t = i_p.to(tl.int64)
        o_q = tl.arange(0, BLOCK_Q)
        m_q = o_q < Q
        b_x = tl.load(x + i_t * x_row + o_q, mask=m_q, other=0.0).to(tl.float32)
        b_y = rms_row(b_x, tl.load(q_weight + o_q, mask=m_q, other=0.0), Q, eps).to(number)
        tl.store(normed + i_t * Q + o_q, b_y, mask=m_q)
        if QUANTISE:
            b_c, b_s = quantise_groups(tl.reshape(b_y.to(tl.float32), (BLOCK_Q // 128, 128)))
            tl.store(codes + i_t * Q + o_q, tl.reshape(b_c, (BLOCK_Q,)), mask=m_q)
            o_g = tl.arange(0, BLOCK_Q // 128)
            tl.store(scales + i_t * (Q // 128) + o_g, b_s, mask=o_g < Q // 128)
    elif i_p < 2 * num_tokens:
        i_t = (i_p - num_tokens).to(tl.int64)
        i_slot = tl.load(slots + i_t).to(tl.int64)
        if i_slot >= 0:
            o_c = tl.arange(0, BLOCK_C)
            m_c = o_c < C
            p_x = x + i_t * x_row + Q + X
            b_x = tl.load(p_x + o_c, mask=m_c, other=0.0).to(tl.float32)
            b_y = rms_row(b_x, tl.load(latent_weight + o_c, mask=m_c, other=0.0), C, eps).to(number)
            o_r = tl.arange(0, 2 * HALF)
            m_r = o_r < R
            b_r = tl.load(p_x + C + o_r, mask=m_r, other=0.0).to(tl.float32)
            b_turn = tl.load(rotations + i_t * R + o_r, mask=m_r, other=0.0)
            b_r = tl.reshape(rotate_pairs(tl.reshape(b_r, (1, 2 * HALF)), b_turn, 1, HALF), (2 * HALF,)).to(number)
            if PACKED:
                b_c, b_s = quantise_groups(tl.reshape(b_y.to(tl.float32), (BLOCK_C // 128, 128)))
                tl.store(record_codes + i_slot * RECORD + o_c, tl.reshape(b_c, (BLOCK_C,)), mask=m_c)
                o_g = tl.arange(0, BLOCK_C // 128)
                tl.store(record_scales + i_slot * (RECORD // 4) + C // 4 + o_g, b_s, mask=o_g < C // 128)
                p_r = record_numbers + i_slot * (RECORD // 2) + (C + C // 32) // 2
            else:
                p_record = record_numbers + i_slot * (C + R)
                tl.store(p_record + o_c, b_y.to(record_numbers.dtype.element_ty), mask=m_c)
                p_r = p_record + C
            tl.store(p_r + o_r, b_r.to(record_numbers.dtype.element_ty), mask=m_r)
    else:
        o_t = ((i_p - 2 * num_tokens) * KEY_TOKENS + tl.arange(0, KEY_TOKENS)).to(tl.int64)
        m_t = o_t < num_tokens
        o_p = tl.arange(0, HALF)
        o_x = tl.arange(0, X)
        m_p = m_t[:, None] & (o_p[None, :] < R // 2)
        m_x = m_t[:, None] & (o_x[None, :] >= R)
        p_row = x + o_t[:, None] * x_row + Q
        b_real = tl.load(p_row + o_p[None, :], mask=m_p, other=0.0).to(tl.float32)
        b_imaginary = tl.load(p_row + R // 2 + o_p[None, :], mask=m_p, other=0.0).to(tl.float32)
        b_rest = tl.load(p_row + o_x[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_mean = (tl.sum(b_real, 1) + tl.sum(b_imaginary, 1) + tl.sum(b_rest, 1)) / X
        b_real = tl.where(m_p, b_real - b_mean[:, None], 0.0)
        b_imaginary = tl.where(m_p, b_imaginary - b_mean[:, None], 0.0)
        b_rest = tl.where(m_x, b_rest - b_mean[:, None], 0.0)
        b_squares = tl.sum(b_real * b_real, 1) + tl.sum(b_imaginary * b_imaginary, 1) + tl.sum(b_rest * b_rest, 1)
        b_factor = tl.rsqrt(b_squares / X + key_eps)[:, None]
        b_real = affine(b_real * b_factor, key_weight, key_bias, o_p, o_p < R // 2).to(number).to(tl.float32)
        b_imaginary = (
            affine(b_imaginary * b_factor, key_weight + R // 2, key_bias + R // 2, o_p, o_p < R // 2)
            .to(number).to(tl.float32)
        )  # fmt: skip
        b_rest = affine(b_rest * b_factor, key_weight, key_bias, o_x, o_x >= R).to(number).to(tl.float32)
        b_y = half_split_hadamard(b_real, b_imaginary, b_rest, rotations, signs, o_t, m_t, number, R, X, HALF)
        b_c, b_s = quantise_groups(b_y)
        b_slot = tl.load(slots + o_t, mask=m_t, other=-1).to(tl.int64)
        m_t = b_slot >= 0
        b_slot = tl.where(m_t, b_slot, 0)
        b_page, b_place = b_slot // 64, b_slot % 64
        p_code = page_codes + b_page * (64 * (X + 4)) + b_place * X
        tl.store(p_code[:, None] + o_x[None, :], b_c, mask=m_t[:, None])
        tl.store(page_scales + b_page * (16 * (X + 4)) + 16 * X + b_place, b_s, mask=m_t)


@triton.jit
def affine(b_x, weight, bias, o_x, m_x):
    """Columns times their weight, plus their bias; zero outside `m_x`."""
    b_w = tl.load(weight + o_x, mask=m_x, other=0.0)
    return b_x * b_w[None, :] + tl.load(bias + o_x, mask=m_x, other=0.0)[None, :]


@functools.cache
def _build(
    number: str, record: str, slot: str, query: int, latent: int, rope: int, *, packed: bool, quantise: bool
) -> Build:
    width = latent_record_bytes(latent, rope) if packed else latent + rope
    return Build(
        kernel=write_kernel,
        types={
            "x": f"*{number}", "rotations": "*fp32", "slots": f"*{slot}", "signs": "*bf16", "normed": f"*{number}",
            **dict.fromkeys(("q_weight", "latent_weight", "key_weight", "key_bias"), "*fp32"),
            **dict.fromkeys(("codes", "record_codes", "page_codes"), "*fp8e4nv"),
            **dict.fromkeys(("scales", "record_scales", "page_scales"), "*fp32"),
            "record_numbers": f"*{record}", "eps": "fp32", "key_eps": "fp32", "x_row": "i64",
        },
        constants={
            "Q": query, "C": latent, "R": rope, "X": QUANT_BLOCK, "RECORD": width, "PACKED": packed,
            "QUANTISE": quantise, "BLOCK_Q": max(QUANT_BLOCK, triton.next_power_of_2(query)),
            "BLOCK_C": triton.next_power_of_2(latent), "HALF": max(16, triton.next_power_of_2(rope // 2)),
            "KEY_TOKENS": KEY_TOKENS,
        },
        divisible=("x_row",) if (query + latent + rope) % 16 == 0 else (),
        num_warps=4,
    )  # fmt: skip


def configs() -> list[Build]:
    """The builds for DeepSeek-V3.2's widths: records packed or in bfloat16, the query latent quantised or not."""
    return [
        _build("bf16", "bf16", "i64", 1536, 512, 64, packed=packed, quantise=quantise)
        for packed in (True, False)
        for quantise in (True, False)
    ]


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
    """Norm the query latent and write latent record and index key of each token; layouts: `kernels.cache.layout`.

    x: [T, Q + 128 + C + R] bfloat16 or float32, contiguous: query latent, index key, latent and key to rotate, as the
    first projection gives them (in this order every part begins with a whole block of float8 weights). rotations:
    [T, R / 2, 2] float32. slots: [T] int64 or int32, page * 64 + place; a negative one writes nothing, and no two are
    the same. records: [slots, C + 4 * C / 128 + 2 * R] uint8, packed float8, or [slots, C + R] bfloat16 or float32.
    pages: [pages, 64 * 132] uint8. quantise: give the query latent as float8 too; Q is a multiple of 128 then.
    """
    num_tokens, pairs, _ = rotations_TP2.shape
    query, latent, index_dim = norms.q.shape[0], norms.latent.shape[0], norms.key.shape[0]
    rope = 2 * pairs
    packed = records.dtype == torch.uint8
    width = latent_record_bytes(latent, rope) if packed else latent + rope
    assert index_dim == QUANT_BLOCK and latent % QUANT_BLOCK == 0, (index_dim, latent)
    assert x.shape == (num_tokens, query + index_dim + latent + rope) and x.is_contiguous()
    assert rotations_TP2.is_contiguous() and slots_T.shape == (num_tokens,) and slots_T.is_contiguous()
    assert records.shape[1] == width and records.is_contiguous(), (records.shape, width)
    assert pages.shape[1] == index_page_bytes(index_dim) and pages.is_contiguous() and pages.dtype == torch.uint8
    assert pages.shape[0] * PAGE_TOKENS == records.shape[0]
    assert not quantise or query % QUANT_BLOCK == 0, query
    normed = torch.empty(num_tokens, query, dtype=x.dtype, device=x.device)
    codes, scales = empty_quantised(num_tokens, query, x.device) if quantise else (None, None)
    build = _build(
        type_name(x), "bf16" if packed else type_name(records), type_name(slots_T), query, latent, rope,
        packed=packed, quantise=quantise,
    )  # fmt: skip
    # what a build does not write it is not given: another stands in
    build.launch(
        (2 * num_tokens + triton.cdiv(num_tokens, KEY_TOKENS) if num_tokens else 0,),
        x=x, q_weight=norms.q, latent_weight=norms.latent, key_weight=norms.key, key_bias=norms.key_bias,
        rotations=rotations_TP2, slots=slots_T, signs=hadamard_signs(index_dim, x.device), normed=normed,
        codes=normed if codes is None else codes, scales=normed if scales is None else scales,
        record_codes=records.view(torch.float8_e4m3fn) if packed else records,
        record_scales=records.view(torch.float32) if packed else records,
        record_numbers=records.view(torch.bfloat16) if packed else records,
        page_codes=pages.view(torch.float8_e4m3fn), page_scales=pages.view(torch.float32),
        num_tokens=num_tokens, x_row=x.stride(0), eps=norms.eps, key_eps=norms.key_eps,
    )  # fmt: skip
    return QueryLatent(normed, codes, scales)
