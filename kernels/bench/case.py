"""One measurement of an operation: its floor in bytes and products, its inputs, its check and its baseline.

The module that holds an operation's cases is named in kernels/registry.py: a function without arguments that gives a
list of `Case`. Nothing is allocated before `prepare` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A case with its tensors in place, all random.

    run: one call of the operation. check: given what `run` returned, raises AssertionError if it is wrong; it is called
    before any clock starts. baseline: one call of what torch or cuBLAS has for it, named in `baseline_name`.
    """

    run: Callable[[], Any]
    check: Callable[[Any], None]
    baseline: Callable[[], Any] | None = None
    baseline_name: str = "none"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of an operation.

    moved_bytes: the least that must be read and written. flops: multiplications and additions, two a product, on the
    tensor cores for `precision`. prepare: makes the trial on a device. tiny: a shape for tests, never measured; each
    operation has one, small enough to be interpreted on a CPU.
    """

    name: str
    moved_bytes: int
    prepare: Callable[[str], Trial]
    flops: int = 0
    precision: Literal["bf16", "fp8", "none"] = "none"
    tiny: bool = False
