"""Loading one rank's weights from an open checkpoint: every tensor is used once, and every second has a name.

float8 weights are multiplied out to the compute dtype on the way in, once, by `_convert`; on a device they stay float8,
with the scales beside them (`device_weights`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from baleen.errors import ConfigError
from baleen.model_spec import QUANT_BLOCK
from kernels.quant.weights import dequantise_weight
from workers.model.allocation import Places
from workers.model.checkpoint import Checkpoint
from workers.model.device_weights import DeviceWeights, allocate_device_weights, weight_bytes
from workers.model.fingerprint import fingerprint
from workers.model.names import TensorRule, tensor_rules
from workers.model.placement import allocate_weights
from workers.model.verify import require_tensors
from workers.model.weights import Weights

_PIECE_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """Where the loading time went. open_s: headers, table, fingerprint. num_bytes: stored bytes that were read."""

    open_s: float
    read_s: float
    convert_s: float
    num_bytes: int


def experts_of_rank(num_experts: int, *, rank: int, world_size: int) -> range:
    """Contiguous global ids of the experts that `rank` holds. Raises ConfigError where they cannot be shared evenly."""
    if world_size < 1 or num_experts % world_size:
        raise ConfigError(f"world_size is {world_size}, must divide the model's {num_experts} experts")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}, must be from 0 to {world_size - 1}")
    share = num_experts // world_size
    return range(rank * share, (rank + 1) * share)


def load_weights(
    checkpoint: Checkpoint, *, rank: int, world_size: int, compute_dtype: torch.dtype, progress: bool
) -> tuple[Weights, LoadTimes]:
    """Check the checkpoint's tensors and load the share of `rank`: everything but other ranks' experts.

    compute_dtype: float32 or bfloat16. progress: a bar on stderr where that is a terminal. Raises CheckpointError (a
    tensor does not fit; all problems are listed) and ConfigError (the experts cannot be shared by world_size).
    """
    assert compute_dtype in (torch.float32, torch.bfloat16), compute_dtype
    begin = time.perf_counter()
    spec = checkpoint.spec
    local_experts = experts_of_rank(spec.num_experts, rank=rank, world_size=world_size)
    require_tensors(checkpoint)
    weights, places = allocate_weights(
        spec, local_experts=local_experts, compute_dtype=compute_dtype, fingerprint=fingerprint(checkpoint)
    )
    rules = {rule.name: rule for rule in tensor_rules(spec)}
    _check_coverage(rules, places, local_experts)
    return weights, _fill_all(checkpoint, rules, places, begin, rank if progress else None)


def load_device_weights(
    checkpoint: Checkpoint, *, rank: int, world_size: int, device: torch.device, progress: bool
) -> tuple[DeviceWeights, LoadTimes]:
    """`load_weights` onto a device, with float8 kept as it is stored and everything else in bfloat16."""
    begin = time.perf_counter()
    spec = checkpoint.spec
    local_experts = experts_of_rank(spec.num_experts, rank=rank, world_size=world_size)
    require_tensors(checkpoint)
    weights, places = allocate_device_weights(
        spec,
        stored_dtypes(checkpoint),
        local_experts=local_experts,
        device=device,
        fingerprint=fingerprint(checkpoint),
    )
    rules = {rule.name: rule for rule in tensor_rules(spec)}
    _check_coverage(rules, {name: parts for name, parts in places.items() if name in rules}, local_experts)
    return weights, _fill_all(checkpoint, rules, places, begin, rank if progress else None)


def device_weight_bytes(checkpoint: Checkpoint, *, rank: int, world_size: int) -> int:
    """Bytes that `load_device_weights` would take. Raises ConfigError where the experts cannot be shared evenly."""
    spec = checkpoint.spec
    experts = experts_of_rank(spec.num_experts, rank=rank, world_size=world_size)
    meta = torch.device("meta")
    weights, _ = allocate_device_weights(
        spec, stored_dtypes(checkpoint), local_experts=experts, device=meta, fingerprint=b""
    )
    return weight_bytes(weights)


def stored_dtypes(checkpoint: Checkpoint) -> dict[str, str]:
    """Stored dtype of every tensor, scales too."""
    return {name: tensor.dtype for name, tensor in checkpoint.tensors.items()}


def _fill_all(
    checkpoint: Checkpoint, rules: dict[str, TensorRule], places: Places, begin: float, rank: int | None
) -> LoadTimes:
    """Fill every place once. rank: whose progress is shown, None: nobody's."""
    meter = _Meter(checkpoint.open_s + time.perf_counter() - begin)
    wanted = [name for name in checkpoint.names_in_file_order() if name in places]
    for name in tqdm(wanted, desc=f"rank {rank}: weights", unit="tensor", disable=True if rank is None else None):
        _load_tensor(checkpoint, name, rules.get(name), places.pop(name), meter)
    assert not places, f"not loaded: {sorted(places)}"
    return LoadTimes(meter.open_s, meter.read_s, meter.convert_s, meter.num_bytes)


@dataclass(slots=True, eq=False)
class _Meter:
    """Seconds and bytes so far."""

    open_s: float
    read_s: float = 0.0
    convert_s: float = 0.0
    num_bytes: int = 0


def _check_coverage(rules: dict[str, TensorRule], places: Places, local_experts: range) -> None:
    """Every tensor of the table has a place here, is another rank's, or is on the skip list; nothing else has one."""
    here = {rule.name for rule in rules.values() if rule.used and (rule.expert is None or rule.expert in local_experts)}
    assert here == places.keys(), sorted(here ^ places.keys())
    for name, parts in places.items():
        assert sum(part.numel() for part in parts) == rules[name].num_elements, name


def _load_tensor(
    checkpoint: Checkpoint, name: str, rule: TensorRule | None, parts: tuple[torch.Tensor, ...], meter: _Meter
) -> None:
    """rule: None for scales that have a place of their own."""
    stored = checkpoint.read(name)
    multiplied_out = rule is not None and stored.dtype == torch.float8_e4m3fn != parts[0].dtype
    scales = checkpoint.read(rule.scale_name) if rule is not None and multiplied_out else None
    meter.num_bytes += stored.nbytes + (scales.nbytes if scales is not None else 0)
    if len(parts) == 1:
        _fill(parts[0], stored, scales, meter)
        return
    whole = torch.empty(stored.shape, dtype=parts[0].dtype)
    _fill(whole, stored, scales, meter)
    begin = time.perf_counter()
    by_head = whole.view(parts[0].shape[0], -1, stored.shape[1])
    first = 0
    for part in parts:
        part.copy_(by_head[:, first : first + part.shape[1]])
        first += part.shape[1]
    meter.convert_s += time.perf_counter() - begin


def _fill(target: torch.Tensor, stored: torch.Tensor, scales: torch.Tensor | None, meter: _Meter) -> None:
    """Read and convert piece by piece, so that no second copy of a large tensor ever exists."""
    assert target.shape == stored.shape, (target.shape, stored.shape)
    for rows in _pieces(stored):
        begin = time.perf_counter()
        # Copying out of the mapped file is what reads it; where the dtype stays, this copy is all there is to do.
        if stored.dtype == target.dtype:
            target[rows].copy_(stored[rows])
            meter.read_s += time.perf_counter() - begin
            continue
        piece = stored[rows].clone()
        read = time.perf_counter()
        target[rows].copy_(_convert(piece, scales, rows))
        meter.read_s += read - begin
        meter.convert_s += time.perf_counter() - read


def _convert(piece: torch.Tensor, scales: torch.Tensor | None, rows: slice) -> torch.Tensor:
    if scales is None:
        return piece
    first = rows.start // QUANT_BLOCK
    return dequantise_weight(piece, scales[first : first + -(-piece.shape[0] // QUANT_BLOCK)])


def _pieces(stored: torch.Tensor) -> Iterator[slice]:
    """Row ranges of about 4 million numbers, cut between blocks of scales."""
    per_row = max(1, stored[0].numel())
    step = max(1, _PIECE_ELEMENTS // per_row // QUANT_BLOCK) * QUANT_BLOCK
    for start in range(0, stored.shape[0], step):
        yield slice(start, min(start + step, stored.shape[0]))
