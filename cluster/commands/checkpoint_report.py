"""What `baleen checkpoint inspect` says: gathered as a plain object, then laid out as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baleen.blocks import BLOCK_TOKENS
from baleen.config import CacheDtype
from baleen.errors import ConfigError
from baleen.model_spec import ModelSpec, load_model_spec
from workers.model.checkpoint import Checkpoint
from workers.model.names import SCALE_SUFFIX
from workers.model.sizes import cache_bytes_per_block, model_sizes, official_dtypes, rank_bytes, tokens_that_fit
from workers.model.verify import require_tensors

GIB = 1 << 30


def inspection(
    directory: Path,
    *,
    world_size: int,
    gpu_memory_gib: float | None,
    cache_dtypes: Sequence[CacheDtype],
    config_only: bool,
) -> dict[str, Any]:
    """Sizes of the checkpoint in `directory`; with config_only, of the model that a config (file or in it) describes.

    Raises CheckpointError where the tensors do not fit the config, ConfigError where world_size does not divide the
    experts.
    """
    if config_only:
        spec = load_model_spec(directory)
        return _report(spec, official_dtypes(spec), world_size, gpu_memory_gib, cache_dtypes)
    with Checkpoint.open(directory) as checkpoint:
        require_tensors(checkpoint)
        stored = {name: tensor.dtype for name, tensor in checkpoint.tensors.items() if not name.endswith(SCALE_SUFFIX)}
        report = _report(checkpoint.spec, stored, world_size, gpu_memory_gib, cache_dtypes)
        return report | {"shards": len(checkpoint.shard_names), "file_bytes": checkpoint.num_file_bytes}


def inspection_text(report: dict[str, Any]) -> str:
    """The report for reading: one fact per line."""
    by_dtype = ", ".join(f"{count:,} {dtype}" for dtype, count in report["tensors_by_dtype"].items())
    lines = [
        ("layers", f"{report['layers']}, {report['dense_layers']} of them dense"),
        ("experts", f"{report['experts']} per layer, {report['experts_per_token']} for each token"),
        ("parameters", _count(report["parameters"])),
        ("  for each token", _count(report["activated_parameters"])),
        ("  not served", f"{_count(report['skipped_parameters'])}, multi-token prediction"),
        ("tensors", f"{report['tensors']:,}: {by_dtype}"),
        ("tensor bytes", _bytes(report["tensor_bytes"])),
    ]
    if "shards" in report:
        lines.append(("on disk", f"{_bytes(report['file_bytes'])} in {report['shards']} shards"))
    lines.append((f"weights of a rank, EP {report['ep']}", ""))
    lines += [(f"  {_form(form)}", _bytes(count)) for form, count in report["weight_bytes_per_rank"].items()]
    for dtype, cache in report["cache"].items():
        lines += _cache_lines(dtype, cache, report["gpu_memory_gib"])
    if report["gpu_memory_gib"] is not None:
        lines.append(("", "(activations and libraries' buffers need memory too, and are not counted)"))
    width = max(len(label) for label, _ in lines)
    return "".join(f"{label:<{width}}  {text}".rstrip() + "\n" for label, text in lines)


def _report(
    spec: ModelSpec,
    stored: dict[str, str],
    world_size: int,
    gpu_memory_gib: float | None,
    cache_dtypes: Sequence[CacheDtype],
) -> dict[str, Any]:
    sizes = model_sizes(spec, stored)
    rank = rank_bytes(spec, stored, world_size=world_size)
    weights = {"stored": rank.stored, "bfloat16": rank.bfloat16, "float32": rank.float32}
    return {
        "layers": spec.num_layers,
        "dense_layers": spec.first_dense_layers,
        "experts": spec.num_experts,
        "experts_per_token": spec.experts_per_token,
        "parameters": sizes.parameters,
        "activated_parameters": sizes.activated_parameters,
        "skipped_parameters": sizes.skipped_parameters,
        "tensors": sizes.num_tensors,
        "tensor_bytes": sizes.num_bytes,
        "tensors_by_dtype": dict(sorted(sizes.dtype_counts.items())),
        "ep": world_size,
        "weight_bytes_per_rank": weights,
        "gpu_memory_gib": gpu_memory_gib,
        "cache": {dtype: _cache(spec, dtype, weights, gpu_memory_gib) for dtype in cache_dtypes},
    }


def _cache(spec: ModelSpec, dtype: CacheDtype, weights: dict[str, int], gpu_memory_gib: float | None) -> dict[str, Any]:
    try:
        block = cache_bytes_per_block(spec, dtype)
    except ConfigError as error:
        return {"impossible": str(error)}
    cache: dict[str, Any] = {"bytes_per_token": block // BLOCK_TOKENS, "bytes_per_block": block}
    if gpu_memory_gib is not None:
        memory = int(gpu_memory_gib * GIB)
        cache["tokens_that_fit"] = {
            form: tokens_that_fit(memory, weight_bytes=num_bytes, block_bytes=block)
            for form, num_bytes in weights.items()
        }
    return cache


def _cache_lines(dtype: str, cache: dict[str, Any], gpu_memory_gib: float | None) -> list[tuple[str, str]]:
    label = f"cache, {dtype}"
    if "impossible" in cache:
        return [(label, cache["impossible"])]
    lines = [(label, f"{cache['bytes_per_token']:,} bytes per token, {cache['bytes_per_block']:,} per block")]
    for form, tokens in cache.get("tokens_that_fit", {}).items():
        room = f"{tokens:,} tokens" if tokens else "no room"
        lines.append((f"  in {gpu_memory_gib:g} GiB, weights {_form(form)}", room))
    return lines


def _form(form: str) -> str:
    return "as stored" if form == "stored" else f"as {form}"


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number:,} ({number / size:.1f} {unit})"
    return f"{number:,}"


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if number >= size:
            return f"{number:,} ({number / size:,.2f} {unit})"
    return f"{number:,}"
