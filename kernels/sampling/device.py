"""Sampling's arithmetic on the device, bit for bit that of `noise` and `reference`.

float64 where they have it; the functions of float64 may differ from another library's in the last places, which the
rounding to multiples of 2^-18 (noise) and 2^-35 (masses) hides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.lang import ordered

ROUND = tl.constexpr(1.5 * 2.0**52)
"""Added and taken away again, it rounds a float64 below 2^51 to an integer, half to even."""


@triton.jit
def mix(x):
    """`noise.mix` of int32 words; products wrap around, and a mask makes the right shift logical."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x21F0AAAD
    x ^= (x >> 15) & 0x1FFFF
    x *= -0x2CA5D269  # 0xd35a2d97
    x ^= (x >> 15) & 0x1FFFF
    return x


@triton.jit
def gumbel(b_key0, b_key1, b_id):
    """`noise.gumbel_noise` of int32 token ids under one row's keys: float32."""
    b_bits = (mix(mix(b_id ^ b_key0) + b_key1) >> 8) & 0xFFFFFF
    b_g = tl.log((b_bits.to(tl.float64) + 0.5) * 5.9604644775390625e-08)
    b_g = tl.log(-b_g) * -262144.0
    return (((b_g + ROUND) - ROUND) * 3.814697265625e-06).to(tl.float32)


@triton.jit
def mass(b_y):
    """`reference`'s mass of scaled logits: exp in float64, as an int64 multiple of 2^-35."""
    b_m = tl.exp(b_y.to(tl.float64)) * 34359738368.0
    return ((b_m + ROUND) - ROUND).to(tl.int64)


@triton.jit
def order_key(b_x):
    """int32 numbers in the order of float32 logits; -0 counts as 0."""
    return ordered(tl.where(b_x == 0.0, 0.0, b_x))


@triton.jit
def best_of(b_value, b_id, least, least_id):
    """The largest value and, among equals, the lowest id, also against a running best; -inf never wins over nothing."""
    best = tl.max(b_value, 0)
    best_id = tl.min(tl.where(b_value == best, b_id, 0x7FFFFFFF), 0)
    take = (best > least) | ((best == least) & (best_id < least_id))
    return tl.where(take, best, least), tl.where(take, best_id, least_id)
