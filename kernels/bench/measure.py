"""Measures one case on a GPU: its check first, then medians of single calls with a cold L2.

A call is captured in a CUDA graph, so that its time is the GPU's and not that of Python; what cannot be captured is
timed as it is called, and the result says so. Between calls a buffer larger than the L2 cache is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

import torch

from kernels.bench.case import Case

BYTES_PER_S = 4.3e12
"""An H200 that copies: bytes read and written together."""

FLOPS_PER_S = {"bf16": 790e12, "fp8": 1500e12}
"""What the best known kernels reach on an H200 with random data."""

FLUSH_BYTES = 256 * 2**20
WARM_UPS, CALLS = 5, 50


@dataclass(frozen=True)
class Result:
    """One line of the table. Times in microseconds; None where nothing was measured, and `reason` says why.

    fraction: floor_us / time_us. limit: what the floor is made of, bytes or flops.
    """

    operation: str
    case: str
    floor_us: float
    limit: str
    time_us: float | None = None
    timing: str = ""
    baseline_us: float | None = None
    baseline: str = ""
    wrong: bool = False
    reason: str = ""

    @property
    def fraction(self) -> float | None:
        """How much of the floor is reached; 1 is the floor itself."""
        return None if self.time_us is None else self.floor_us / self.time_us

    def as_dict(self) -> dict[str, Any]:
        """All fields, and the fraction."""
        return asdict(self) | {"fraction": self.fraction}


class Clock(Protocol):
    """Times calls on a device."""

    def time_us(self, call: Callable[[], Any]) -> tuple[float, str]:
        """Median of some calls in microseconds, and how they were timed ("graph" or "calls")."""
        ...


class CudaClock:
    """Events of CUDA around graphs of single calls, on the current device."""

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def time_us(self, call: Callable[[], Any]) -> tuple[float, str]:
        """See Clock."""
        for _ in range(WARM_UPS):
            call()
        torch.cuda.synchronize()
        replay, timing = self._captured(call)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(CALLS)]
        for start, end in events:
            self._flush.zero_()
            start.record()
            replay()
            end.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) * 1e3 for start, end in events), timing

    def _captured(self, call: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:  # it waits for the device, or allocates where a graph must not
            torch.cuda.synchronize()
            return call, "calls"
        return graph.replay, "graph"


def floor_us(case: Case) -> tuple[float, str]:
    """The least time that the case can take on an H200, and what sets it: "bytes" or "flops"."""
    by_bytes = case.moved_bytes / BYTES_PER_S * 1e6
    by_flops = 0.0 if case.precision == "none" else case.flops / FLOPS_PER_S[case.precision] * 1e6
    return (by_bytes, "bytes") if by_bytes >= by_flops else (by_flops, "flops")


def measure(operation: str, case: Case, device: str, clock: Clock) -> Result:
    """Check the case and time it; what is wrong or does not fit into memory is not timed."""
    floor, limit = floor_us(case)
    try:
        trial = case.prepare(device)
        trial.check(trial.run())
        time, timing = clock.time_us(trial.run)
    except AssertionError as error:
        return Result(operation, case.name, floor, limit, wrong=True, reason=f"wrong: {error}")
    except torch.cuda.OutOfMemoryError:
        return Result(operation, case.name, floor, limit, reason="does not fit into this device's memory")
    result = Result(operation, case.name, floor, limit, time, timing)
    if trial.baseline is None:
        return result
    try:
        baseline, _ = clock.time_us(trial.baseline)
    except torch.cuda.OutOfMemoryError:
        return result
    return Result(operation, case.name, floor, limit, time, timing, baseline, trial.baseline_name)
