"""CUDA graphs of decode steps: one for each bucket of rows and of context, captured at the start.

A step is filled up to its bucket with rows that see nothing and write nothing, so that a graph gives the bits that the
same step gives without one.

Legend: N rows of a bucket, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workers.model.device_batch import DeviceBatch, HostBatch, build_host_batch
from workers.model.forward import Array, Piece
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


def bucket_of(size: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds `size`; None where none does."""
    place = bisect_left(buckets, size)
    return buckets[place] if place < len(buckets) else None


def fill_up(pieces: Sequence[Piece], table: Array, rows: Sequence[int], contexts: Sequence[int]) -> HostBatch | None:
    """A decode step filled up to its buckets; None if it is none: a piece of several tokens, or too many of them."""
    if any(len(piece.token_ids) != 1 for piece in pieces):
        return None
    num_rows = bucket_of(len(pieces), rows)
    most_context = bucket_of(max((piece.start for piece in pieces), default=0) + 1, contexts)
    if not pieces or num_rows is None or most_context is None:
        return None
    return build_host_batch(pieces, table, num_rows=num_rows, most_context=most_context)


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
        self._captured: dict[tuple[int, int], _Captured] = {}

    def capture(self, rows: Sequence[int], contexts: Sequence[int]) -> int:
        """Capture each pair of buckets, the largest first, so that the others fit its memory; returns how many."""
        no_blocks = np.zeros((1, 1), dtype=np.int64)
        for most_context in sorted(contexts, reverse=True):
            for num_rows in sorted(rows, reverse=True):
                idle = build_host_batch([], no_blocks, num_rows=num_rows, most_context=most_context)
                self._captured[num_rows, most_context] = self._capture(idle)
        return len(self._captured)

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
        with torch.cuda.graph(graph, pool=self._pool):
            logits_NV = self._forward(batch)
        return _Captured(graph, inputs, logits_NV)

    def run(self, host: HostBatch) -> torch.Tensor:
        """Logits [N, V] of a step that `fill_up` made; they hold until the next one."""
        captured = self._captured[host.num_tokens, host.most_context]
        self._staging.upload(host.arrays, into=captured.inputs)
        captured.graph.replay()
        return captured.logits_NV
