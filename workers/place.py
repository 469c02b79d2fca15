"""What a rank computes with and where: decided once from the configuration, with all that this forbids."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baleen.config import RankConfig
from baleen.errors import ConfigError
from kernels.dispatch import Implementation, choose_implementation, device_of
from workers.cache.device_tensors import device_block_bytes
from workers.model.checkpoint import Checkpoint
from workers.model.limits import LOGIT_BYTES
from workers.model.loading import device_weight_bytes
from workers.model.memory_plan import MemoryPlan, exchange_bytes, workspace_bytes
from workers.model.prompt_scores import SLICE_BYTES
from workers.parallel.group import Group


@dataclass(frozen=True, slots=True)
class Place:
    """The implementation of all operations, and the device that they run on."""

    implementation: Implementation
    device: torch.device


def place_of(config: RankConfig) -> Place:
    """Decide, and make the device torch's current one. Raises ConfigError on formats that the kernels do not have."""
    implementation = choose_implementation(config.model.kernels)
    place = Place(implementation, device_of(implementation, config.parallel.rank))
    if implementation == "triton":
        _require_formats(config)
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    return place


def _require_formats(config: RankConfig) -> None:
    for key, value, allowed in (
        ("model.compute_dtype", config.model.compute_dtype, ("bfloat16",)),
        ("cache.dtype", config.cache.dtype, ("float8", "bfloat16")),
        ("model.attention_form", config.model.attention_form, ("auto",)),
    ):
        if value not in allowed:
            raise ConfigError(
                f"{key} is {value!r}, must be {' or '.join(allowed)} where Triton's kernels compute; "
                "model.kernels 'torch' computes on the CPU"
            )


def plan_memory(config: RankConfig, checkpoint: Checkpoint, group: Group, device: torch.device) -> MemoryPlan | None:
    """What the rank needs of its device, before anything is allocated; None on a CPU, whose memory is not counted."""
    if device.type != "cuda":
        return None
    spec = checkpoint.spec
    block = device_block_bytes(spec, config.cache.dtype)
    return MemoryPlan(
        weights=device_weight_bytes(checkpoint, rank=group.rank, world_size=group.world_size),
        cache=block * config.cache.num_blocks,
        workspace=workspace_bytes(spec, config.engine, logit_bytes=LOGIT_BYTES + SLICE_BYTES)
        + exchange_bytes(spec, config.engine, world_size=group.world_size),
        free=torch.cuda.mem_get_info(device)[0],
        block=block,
    )
