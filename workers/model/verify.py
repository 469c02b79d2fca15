"""Checks of a checkpoint: its tensors against the written table, and their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tqdm import tqdm

from workers.model.checkpoint import Checkpoint, StoredTensor, problems_error
from workers.model.names import BFLOAT16, DTYPE_BYTES, FLOAT8, FLOAT32, SCALE_SUFFIX, TensorRule, tensor_rules

_PIECE_ELEMENTS = 1 << 24


def check_tensors(checkpoint: Checkpoint) -> list[str]:
    """Compare names, shapes and dtypes with the written table; every difference is one line, none stops the search.

    Tensors on the skip list may be absent; where they are present, they must have the right shape and dtype.
    """
    known: set[str] = set()
    problems: list[str] = []
    for rule in tensor_rules(checkpoint.spec):
        stored = checkpoint.tensors.get(rule.name)
        known.add(rule.name)
        if rule.quantisable:
            known.add(rule.scale_name)
        if stored is not None:
            problems += _check_weight(checkpoint, rule, stored)
        elif rule.used:
            problems.append(f"{rule.name}: missing, expected {list(rule.shape)} {_one_of(rule.dtypes)}")
        if rule.quantisable:
            problems += _check_scale(checkpoint, rule, stored)
    for name, stored in checkpoint.tensors.items():
        if name not in known:
            problems.append(f"{name}: not a tensor of this model, found {_describe(stored)}")
    return problems


def require_tensors(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError with all differences that `check_tensors` finds."""
    if problems := check_tensors(checkpoint):
        raise problems_error(checkpoint.directory, problems)


def check_values(checkpoint: Checkpoint, *, progress: bool) -> list[str]:
    """Read every tensor: NaN or infinity anywhere, and scales that are not positive, are one line per tensor."""
    problems: list[str] = []
    total = sum(_num_bytes(stored) for stored in checkpoint.tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="verify", disable=None if progress else True) as bar:
        for name in checkpoint.names_in_file_order():
            stored = checkpoint.tensors[name]
            if stored.dtype in DTYPE_BYTES:
                problems += _check_numbers(name, stored, checkpoint.read(name))
            bar.update(_num_bytes(stored))
    return problems


def _check_weight(checkpoint: Checkpoint, rule: TensorRule, stored: StoredTensor) -> Iterator[str]:
    if stored.shape != rule.shape:
        yield f"{rule.name}: shape {list(stored.shape)}, expected {list(rule.shape)} (in {stored.shard})"
    if stored.dtype not in rule.dtypes:
        yield f"{rule.name}: dtype {stored.dtype}, expected {_one_of(rule.dtypes)} (in {stored.shard})"
    elif stored.dtype == FLOAT8 and not checkpoint.spec.quantised:
        expected = _one_of((BFLOAT16, FLOAT32))
        yield (
            f"{rule.name}: dtype {FLOAT8}, expected {expected}: config.json has no quantization_config "
            f"(in {stored.shard})"
        )


def _check_scale(checkpoint: Checkpoint, rule: TensorRule, weight: StoredTensor | None) -> Iterator[str]:
    scale = checkpoint.tensors.get(rule.scale_name)
    if scale is None:
        if weight is not None and weight.dtype == FLOAT8:
            expected = f"{rule.scale_name} {list(rule.scale_shape)} {FLOAT32}"
            yield f"{rule.name}: {FLOAT8} without its scale, expected {expected}"
        return
    if weight is None or weight.dtype != FLOAT8:
        found = weight.dtype if weight is not None else "missing"
        yield f"{rule.scale_name}: scale without a {FLOAT8} weight, {rule.name} is {found} (in {scale.shard})"
    if scale.shape != rule.scale_shape:
        yield f"{rule.scale_name}: shape {list(scale.shape)}, expected {list(rule.scale_shape)} (in {scale.shard})"
    if scale.dtype != FLOAT32:
        yield f"{rule.scale_name}: dtype {scale.dtype}, expected {FLOAT32} (in {scale.shard})"


def _check_numbers(name: str, stored: StoredTensor, tensor: torch.Tensor) -> Iterator[str]:
    flat = tensor.reshape(-1)
    bad = not_positive = 0
    for start in range(0, flat.numel(), _PIECE_ELEMENTS):
        piece = flat[start : start + _PIECE_ELEMENTS].float()
        bad += int((~torch.isfinite(piece)).sum())
        not_positive += int((piece <= 0).sum())
    if bad:
        yield f"{name}: {bad} of {flat.numel()} numbers are NaN or infinite (in {stored.shard})"
    if name.endswith(SCALE_SUFFIX) and not_positive:
        yield f"{name}: {not_positive} of {flat.numel()} scales are not above 0 (in {stored.shard})"


def _num_bytes(stored: StoredTensor) -> int:
    count = DTYPE_BYTES.get(stored.dtype, 0)
    for size in stored.shape:
        count *= size
    return count


def _one_of(dtypes: tuple[str, ...]) -> str:
    return " or ".join(dtypes)


def _describe(stored: StoredTensor) -> str:
    return f"{list(stored.shape)} {stored.dtype} in {stored.shard}"
