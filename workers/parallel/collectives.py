"""The only user of torch.distributed's collectives: times them for the watchdog and maps their errors to ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from baleen.errors import EpochEnded
from workers.parallel.progress import Progress


class Collectives:
    """Collectives over one process group. `explain` turns a backend's error into the end of the epoch."""

    def __init__(
        self, group: dist.ProcessGroup, progress: Progress, explain: Callable[[RuntimeError], EpochEnded]
    ) -> None:
        self.world_size = group.size()
        self._group = group
        self._progress = progress
        self._explain = explain

    def all_to_all(
        self,
        output: torch.Tensor,
        source: torch.Tensor,
        output_splits: list[int] | None = None,
        source_splits: list[int] | None = None,
    ) -> None:
        """Send `source_splits[r]` rows to each rank r and fill `output` with rows by source rank.

        Both are contiguous and may be empty; without splits each rank gets an equal part. Raises EpochEnded.
        """
        self._progress.enter_collective()
        try:
            dist.all_to_all_single(output, source, output_splits, source_splits, group=self._group)
        except RuntimeError as error:
            raise self._explain(error) from error
        finally:
            self._progress.leave_collective()

    def to_host(self, counts: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Copy an int64 tensor to the host; on a GPU this is where a collective that hangs is waited for."""
        with self.waiting():
            return counts.cpu().numpy()

    @contextmanager
    def waiting(self, num_replayed: int = 0) -> Iterator[None]:
        """Around a wait for collectives that were queued before. Raises EpochEnded.

        num_replayed: how many were part of a CUDA graph, and so did not come through here.
        """
        self._progress.wait_begins(num_replayed)
        try:
            yield
        except RuntimeError as error:
            raise self._explain(error) from error
        finally:
            self._progress.leave_collective()
