"""Ranks of a device's engine that move blocks to each other: a loop, a scheduler and a transport over device caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from baleen.config import CacheDtype, ModelConfig, RankConfig, ServeConfig, TransferConfig
from baleen.ids import Epoch, Incarnation
from baleen.telemetry import Log
from tests.support.clock import ManualClock
from tests.support.device_ranks import make_runner
from tests.support.loop_rank import Rank, RealModel
from workers.cache.block_bytes import export_block
from workers.cache.device_bytes import DeviceBytes
from workers.parallel.local_group import LocalGroup
from workers.startup import open_transport

NUM_BLOCKS = 12


def device_rank(directory: Path, device: torch.device, cache_dtype: CacheDtype, *, nixl: bool = False) -> Rank:
    """A rank alone, over the checkpoint's weights on this device; on a CPU with references in its table."""
    group = LocalGroup(Epoch("e"), Incarnation("i"), lambda cause: None, ManualClock())
    runner = make_runner(directory, group, device, cache_dtype, max_running=NUM_BLOCKS // 3)
    weights = runner._model._weights
    record_format = f"triton|{cache_dtype}"
    fingerprint = weights.fingerprint + record_format.encode()
    config = RankConfig(
        model=ModelConfig(path="unused"),
        serve=ServeConfig(listen="127.0.0.1:0", role="prefill"),
        transfer=TransferConfig(transport="nixl" if nixl else "tcp"),
    )
    return Rank(
        num_blocks=NUM_BLOCKS,
        max_running=NUM_BLOCKS // 3,
        make_transport=lambda cache: open_transport(config, runner, weights.fingerprint, record_format, Log("off")),
        real=RealModel(weights.spec, fingerprint, runner, DeviceBytes(runner.cache, record_format)),
    )


def move(prefill: Rank, decode: Rank, prompt: list[int], through: str = "") -> tuple[str, str | None]:
    """Have the blocks of a prompt computed on one rank for another; the ticket there, and what went wrong.

    through: an address in the middle.
    """
    reservation = decode.reserve(prompt).result(0)
    prefill.prefill("p", prompt, replace(reservation, address=through or reservation.address))
    prefill.step_until(lambda: prefill.prefills_done, decode)
    return reservation.ticket, prefill.prefills_done[0].failure


def tokens_of(rank: Rank, prompt: list[int], ticket: str | None = None) -> list[int]:
    """Four tokens after the prompt, greedily."""
    rank.submit("d", prompt, max_tokens=4, ticket=ticket)
    rank.step_until(lambda: rank.finishes())
    return rank.tokens_of("d")


def bytes_of(rank: Rank, prompt: list[int]) -> list[bytes]:
    """The blocks of a prompt that a rank keeps."""
    return [export_block(rank.transport._cache, block) for block in rank.blocks.find_prefix(b"", prompt)]
