"""`baleen bench kernels | layer`: time of each kernel against its floor, and of one real layer, on a GPU."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from baleen.errors import ConfigError

if TYPE_CHECKING:
    from baleen.config import CacheDtype
    from baleen.model_spec import ModelSpec

WRONG = 1


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("bench", help="time of kernels against their floors, on this machine's GPU")
    commands = parser.add_subparsers(dest="bench_command", required=True, metavar="kernels|layer")
    kernels = commands.add_parser(
        "kernels",
        help="each operation: checked, then timed against its floor and a baseline; exit code 1 if one is wrong, "
        "69 without a CUDA device",
    )
    kernels.add_argument("--op", action="append", metavar="NAME", help="only this operation; may be repeated")
    kernels.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    kernels.add_argument("--list", action="store_true", help="print the names of the operations, measure nothing")
    kernels.set_defaults(run=run_kernels)
    layer = commands.add_parser(
        "layer",
        help="one decoder layer of a model's real sizes, decode and prefill, by operation; exit code 69 without a "
        "CUDA device",
    )
    layer.add_argument("config", type=Path, metavar="CONFIG", help="config.json of the model, or its directory")
    layer.add_argument("--experts", type=int, metavar="N", help="so many routed experts (the model's)")
    layer.add_argument("--cache-dtype", choices=("float8", "bfloat16"), default="float8", help="of records (float8)")
    layer.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    layer.set_defaults(run=run_layer)


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


def run_layer(args: argparse.Namespace) -> int:
    """Measure and print. Raises CheckpointError on a config that cannot be read, ConfigError on too many experts."""
    from baleen.model_spec import load_model_spec

    model = load_model_spec(args.config)
    experts = model.num_experts if args.experts is None else args.experts
    groups, chosen = model.num_expert_groups, model.experts_per_token
    if (
        experts % groups
        or not 2 * groups <= experts <= model.num_experts
        or experts // groups * model.topk_groups < chosen
    ):
        raise ConfigError(
            f"--experts is {experts}, must be a multiple of {groups} from {2 * groups} to {model.num_experts}, with "
            f"{chosen} or more of them in {model.topk_groups} groups"
        )
    reason = _no_device()
    if reason:
        sys.stderr.write(f"baleen: nothing was measured: {reason}\n")
        return os.EX_UNAVAILABLE
    return _measure_layer(model, experts, args.cache_dtype, args.json)


def _measure_layer(model: ModelSpec, experts: int, cache_dtype: CacheDtype, target: Path | None) -> int:
    import torch

    from kernels.dispatch import triton_operations
    from workers.model.layer_bench import SHAPES, LayerBench, layer_spec, table_of

    spec = layer_spec(model, experts)
    bench = LayerBench(spec, triton_operations(), torch.device("cuda"), cache_dtype)
    times = [bench.measure(shape) for shape in SHAPES]
    sys.stdout.write(table_of(times, spec, model.num_layers))
    if target is not None:
        found = [asdict(time) | {"other_us": time.other_us} for time in times]
        report = {
            "device": torch.cuda.get_device_name(),
            "experts": experts,
            "layers": model.num_layers,
            "steps": found,
        }
        target.write_text(json.dumps(report, indent=1) + "\n")
    return os.EX_OK


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
