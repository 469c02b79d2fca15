"""`baleen bench kernels`: time of each kernel against its floor and a baseline, on this machine's GPU."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from baleen.errors import ConfigError

WRONG = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("bench", help="time of kernels against their floors, on this machine's GPU")
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="kernels")
    kernels = commands.add_parser(
        "kernels",
        help="each operation: checked, then timed against its floor and a baseline; exit code 1 if one is wrong, "
        "69 without a CUDA device",
    )
    kernels.add_argument("--op", action="append", metavar="NAME", help="only this operation; may be repeated")
    kernels.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    kernels.add_argument("--list", action="store_true", help="print the names of the operations, measure nothing")
    kernels.set_defaults(run=run_kernels)


def run_kernels(args: argparse.Namespace) -> int:
    """Measure and print. Raises ConfigError for an operation that does not exist."""
    from kernels.registry import OPERATIONS

    names = [operation.name for operation in OPERATIONS]
    if args.list:
        sys.stdout.write("".join(f"{name}\n" for name in names))
        return os.EX_OK
    unknown = sorted(set(args.op or ()) - set(names))
    if unknown:
        raise ConfigError(f"--op {unknown[0]}: there is no such operation; there are {', '.join(names)}")
    reason = _no_device()
    if reason:
        sys.stderr.write(f"baleen: nothing was measured: {reason}\n")
        return os.EX_UNAVAILABLE
    return _measure(args.op or names, args.json)


def _no_device() -> str:
    """Why nothing can be measured here; empty if something can."""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 has kernels interpreted on the CPU"
    return ""


def _measure(names: list[str], target: Path | None) -> int:
    import torch

    from kernels.bench.measure import CudaClock
    from kernels.bench.report import as_json, heading, line, run_all

    results = []
    sys.stdout.write(heading())
    for result in run_all(names, "cuda", CudaClock()):
        results.append(result)
        sys.stdout.write(line(result))
        sys.stdout.flush()
    if target is not None:
        target.write_text(json.dumps(as_json(results, torch.cuda.get_device_name()), indent=1) + "\n")
    return WRONG if any(result.wrong for result in results) else os.EX_OK
