"""Ranks of a device's engine that run a plan of requests step by step, alone or in a group, on a CPU or on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baleen.config import CacheConfig, CacheDtype, EngineConfig, ModelConfig, ParallelConfig, RankConfig
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.processes import emit
from workers.engine.batch import Batch, BatchItem
from workers.engine.submission import expand_submission
from workers.model.checkpoint import Checkpoint
from workers.model.device_batch import build_host_batch
from workers.model.forward import Piece
from workers.model.loading import load_device_weights
from workers.parallel.group import Group
from workers.parallel.join import open_group
from workers.parallel.lockstep import NO_ROWS, DecodeSize

BLOCKS_EACH = 3
PATIENT_S = 300.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A prompt that is computed in step `start`, after which come `count - 1` decode steps."""

    prompt: Sequence[int]
    start: int
    count: int


def make_runner(directory: Path, group: Group, device: torch.device, cache_dtype: CacheDtype, *, max_running: int = 3):
    """A runner of the group's rank; on a CPU with references in its table."""
    from workers.model import device_runner

    if device.type == "cpu":
        from tests.support.reference_operations import reference_operations

        device_runner.triton_operations = reference_operations
    share = {"rank": group.rank, "world_size": group.world_size}
    with Checkpoint.open(directory) as checkpoint:
        weights, _ = load_device_weights(checkpoint, **share, device=device, progress=False)
    config = RankConfig(
        model=ModelConfig(path="unused", compute_dtype="bfloat16", kernels="triton"),
        cache=CacheConfig(dtype=cache_dtype, num_blocks=BLOCKS_EACH * max_running),
        engine=EngineConfig(max_running=max_running),
    )
    return device_runner.DeviceRunner(weights, config, group.expert_exchange(weights.spec.num_experts))


def run_plan(runner, group: Group, plan: Sequence[Planned], num_steps: int) -> dict[str, Any]:
    """For each request the log-probability of its best token after each step; and the rows and keys agreed on in each.

    Whatever is best, the next token is a given one, so that a tie that falls otherwise ends no comparison.
    """
    requests, answers, sizes = [], [[] for _ in plan], []
    for place, planned in enumerate(plan):
        sampling = SamplingParams(temperature=0.0, logprobs=0, ignore_eos=True)
        (request,) = expand_submission(
            RequestId(f"r{place}"), planned.prompt, sampling, vocab_size=512, eos_token_ids=(1,)
        )
        request.slot, request.block_ids = place, list(range(BLOCKS_EACH * place, BLOCKS_EACH * (place + 1)))
        requests.append(request)
    for step in range(num_steps):
        busy = [place for place, one in enumerate(plan) if one.start <= step < one.start + one.count]
        items = []
        for place in busy:
            request, first = requests[place], step == plan[place].start
            start = 0 if first else len(request.token_ids) - 1
            items.append(BatchItem(request, start, len(request.token_ids) - start, samples=True))
        batch = Batch(tuple(items), sum(item.num_tokens for item in items)) if items else None
        size = NO_ROWS if batch is None else batch.decode
        agreed = group.exchange(step, 0 if batch is None else batch.num_tokens, decode=size).decode
        sizes.append(None if agreed is None else [agreed.rows, agreed.context])
        for place, token in zip(busy, runner.run(batch, agreed).sampled, strict=True):
            answers[place].append(token.logprob)
            requests[place].token_ids.append(2 + (97 * step + place) % 500)
    return {"answers": answers, "sizes": sizes}


def graphs_give_the_bits(runner, num_rows: int) -> bool:
    """Whether a decode step as a graph, twice, gives the bits that it gives without one. All ranks call it together."""
    pieces = [Piece([7], 70, row, samples=True) for row in range(num_rows)]
    decode = DecodeSize(runner._tables.array.shape[0], 71)
    filled = build_host_batch(pieces, runner._tables.array, fill_to=runner._buckets.holding(decode))
    plain = runner._forward(filled)[:num_rows].clone().view(torch.int32)
    return all(torch.equal(runner._logits(pieces, decode).clone().view(torch.int32), plain) for _ in range(2))


def planned_rank(
    config: ParallelConfig,
    directory: Path,
    cache_dtype: CacheDtype,
    plan: Sequence[Planned],
    num_steps: int,
    on_gpu: bool = False,
) -> None:
    """A rank process that runs its plan in the group, on a GPU of its own or on the CPU, and emits what it found."""
    torch.set_num_threads(1)
    device = torch.device("cuda", config.rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    group = open_group(config, lambda cause: None, device=device)
    runner = make_runner(directory, group, device, cache_dtype)
    group.await_all("loaded", PATIENT_S)
    runner.warm_up()
    found = run_plan(runner, group, plan, num_steps)
    emit({**found, "graphs": runner.num_graphs, "same_bits": on_gpu and graphs_give_the_bits(runner, len(plan))})
    group.await_all("done", PATIENT_S)
    # a communicator waits for the graphs that it is part of
    runner.close()
    group.close()
