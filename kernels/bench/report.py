"""Runs the cases of operations and writes what came out: a table for people, JSON for programs."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch

from kernels.bench.measure import BYTES_PER_S, CALLS, FLOPS_PER_S, Clock, Result, measure
from kernels.registry import OPERATIONS, resolve


def operation_names() -> tuple[str, ...]:
    """Every operation that has a bench, in the order of the registry."""
    return tuple(operation.name for operation in OPERATIONS)


def run_all(names: Iterable[str], device: str, clock: Clock) -> Iterator[Result]:
    """A result for each case of these operations that is no tiny one, as it is measured."""
    wanted = set(names)
    for operation in OPERATIONS:
        if operation.name in wanted:
            for case in resolve(operation.bench)():
                if not case.tiny:
                    yield measure(operation.name, case, device, clock)
                    if device == "cuda":
                        torch.cuda.empty_cache()


def as_json(results: Sequence[Result], device_name: str) -> dict[str, Any]:
    """One object: the machine, what the floors are made of, and a row for each case."""
    return {
        "device": device_name,
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "bytes_per_s": BYTES_PER_S,
        "flops_per_s": FLOPS_PER_S,
        "calls": CALLS,
        "results": [result.as_dict() for result in results],
    }


def heading() -> str:
    """The first line of the table."""
    return f"{'operation':<22} {'case':<34} {'us':>10} {'floor':>10} {'of floor':>9} {'baseline':>10}  timed\n"


def line(result: Result) -> str:
    """One line of the table."""
    start = f"{result.operation:<22} {result.case:<34}"
    if result.time_us is None or result.fraction is None:
        return f"{start} {result.reason}\n"
    baseline = "" if result.baseline_us is None else f"{result.baseline_us:.1f}"
    numbers = f"{result.time_us:>10.1f} {result.floor_us:>10.1f} {result.fraction:>9.0%} {baseline:>10}"
    return f"{start} {numbers}  {result.timing}, floor by {result.limit}\n"
