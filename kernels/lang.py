"""What kernels share on the device: float8 with saturation, powers of two, and an order of floats as integers.

Rules that every kernel keeps: arithmetic in float32 only, after the load; a clamp before a cast to float8; int64 where
an index meets a stride; masks on scores and never on gathered keys; no float atomics, so that bits repeat.
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT8_MAX = tl.constexpr(448.0)
# TRITON_INTERPRET is read once, when triton's decorator runs: a process interprets every kernel or none
INTERPRETED: bool = triton.knobs.runtime.interpret


@triton.jit
def to_float8(x):
    """float8_e4m3 of float32 numbers: rounded to nearest even, beyond 448 to 448; NaN stays NaN."""
    return tl.clamp(x, -FLOAT8_MAX, FLOAT8_MAX, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def pow2_ceil(x):
    """The smallest power of two that is not below a positive, normal float32 number."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).to(tl.int32)
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def ordered(x):
    """int32 numbers that are ordered as float32 numbers are; -0.0 is below 0.0, and NaN is where its bits put it."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key):
    """The float32 numbers whose `ordered` integers these are."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
