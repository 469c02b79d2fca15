"""CUDA graphs of decode steps: one for each bucket of rows and of context, captured at the start.

A step is filled up to its bucket with rows that see nothing and write nothing, so that a graph gives the bits that the
same step gives without one. The ranks of a group capture the same graphs in the same order, and in each step all run
the same one, since the exchanges between them are part of it.

Legend: N rows of a bucket, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workers.model.device_batch import DeviceBatch, HostBatch, build_host_batch
from workers.parallel.lockstep import DecodeSize
from workers.staging import Staging, upload_bytes

CONTEXT_STEP = 4
"""Contexts of one bucket are up to so many times those of the one before."""


def row_buckets(most_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, then every 8 up to 64, then every 64, up to `most_rows`, which is the last."""
    steps = [1, 2, 4, *range(8, 65, 8), *range(128, most_rows, 64)]
    return (*(step for step in steps if step < most_rows), most_rows)


def context_buckets(dense_limit: int, most_context: int) -> tuple[int, ...]:
    """The longest context that needs no indexer, then four times that, up to `most_context`, which is the last."""
    found = []
    size = dense_limit
    while size < most_context:
        found.append(size)
        size *= CONTEXT_STEP
    return (*found, most_context)


@dataclass(frozen=True, slots=True)
class Buckets:
    """The sizes that decode steps are filled up to: every pair of these, each in ascending order."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]

    def holding(self, size: DecodeSize) -> DecodeSize:
        """The smallest that holds `size`, which must not be beyond the largest."""
        return DecodeSize(_smallest(size.rows, self.rows), _smallest(size.context, self.contexts))

    def largest_first(self) -> list[DecodeSize]:
        """All of them."""
        return [DecodeSize(rows, context) for context in self.contexts[::-1] for rows in self.rows[::-1]]


def _smallest(size: int, buckets: Sequence[int]) -> int:
    place = bisect_left(buckets, size)
    assert place < len(buckets), f"a decode step of {size}, at most {buckets[-1]}"
    return buckets[place]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    logits_NV: torch.Tensor


class DecodeGraphs:
    """Every bucket's graph over one model; the device memory of all of them is shared."""

    def __init__(self, forward: Callable[[DeviceBatch], torch.Tensor], staging: Staging, device: torch.device) -> None:
        self._forward = forward
        self._staging = staging
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[DecodeSize, _Captured] = {}

    def __len__(self) -> int:
        """How many are captured."""
        return len(self._captured)

    def capture(self, buckets: Buckets) -> None:
        """Capture each bucket, the largest first, so that the others fit its memory."""
        no_blocks = np.zeros((1, 1), dtype=np.int64)
        for size in buckets.largest_first():
            self._captured[size] = self._capture(build_host_batch([], no_blocks, fill_to=size))

    def _capture(self, host: HostBatch) -> _Captured:
        inputs = torch.zeros(upload_bytes(host.arrays), dtype=torch.uint8, device=self._device)
        batch = host.on(self._staging.upload(host.arrays, into=inputs))
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            # compiles what is not compiled yet, which cannot be captured
            self._forward(batch)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": threads of NCCL ask after their events meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_NV = self._forward(batch)
        return _Captured(graph, inputs, logits_NV)

    def run(self, host: HostBatch) -> torch.Tensor:
        """Logits [N, V] of a step that was filled up to a bucket; they hold until the next one."""
        assert host.filled_to is not None, "only a step of a bucket's size has a graph"
        captured = self._captured[host.filled_to]
        self._staging.upload(host.arrays, into=captured.inputs)
        captured.graph.replay()
        return captured.logits_NV

    def clear(self) -> None:
        """Let go of all graphs."""
        self._captured.clear()
