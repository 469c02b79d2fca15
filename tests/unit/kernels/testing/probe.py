"""Kernels with planted faults, compiled ahead of time; prints the gate's verdict of each as JSON."""

import json
import sys

import triton
import triton.language as tl

from kernels.builds import Build
from kernels.testing.ahead import HOPPER, compile_ahead, faults


@triton.jit
def product(a, b, out, steps, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows, columns, inner = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    sums = tl.zeros([BM, BN], tl.float32)
    for step in range(steps):
        left = tl.load(a + step * BK + rows[:, None] * 4096 + inner[None, :])
        right = tl.load(b + step * BK + columns[:, None] * 4096 + inner[None, :])
        sums = tl.dot(left, tl.trans(right), sums)
    tl.store(out + rows[:, None] * BN + columns[None, :], sums)


def build(rows: int, columns: int, inner: int, num_warps: int, num_stages: int) -> Build:
    """A product of tiles of bfloat16."""
    return Build(
        kernel=product,
        types={"a": "*bf16", "b": "*bf16", "out": "*fp32"},
        constants={"BM": rows, "BN": columns, "BK": inner},
        num_warps=num_warps,
        num_stages=num_stages,
        tensor_cores=True,
    )


BUILDS = {
    "good": build(64, 64, 64, 4, 2),
    "spilling": build(128, 256, 64, 4, 2),
    "wide": build(128, 128, 128, 8, 5),
    "narrow": build(16, 64, 64, 4, 2),
}

if __name__ == "__main__":
    verdicts = {name: faults(one, compile_ahead(one, HOPPER)) for name, one in BUILDS.items()}
    sys.stdout.write(json.dumps(verdicts))
