"""Small arrays on their way from the host to a device, all in one copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

ALIGNMENT = 16


class Staging:
    """Carries arrays to a device in one copy, through memory that is pinned if the device is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def upload(
        self, arrays: Sequence[npt.NDArray[np.generic]], *, into: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """The arrays as tensors on the device, each at a multiple of 16 bytes of one buffer. into: the buffer, uint8.

        Arrays of the same shapes lie at the same places. Does not wait for the device, but for the last upload's copy.
        """
        places = []
        size = 0
        for array in arrays:
            places.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._reserve(size)
        host = self._pinned.numpy()
        for place, array in zip(places, arrays, strict=True):
            host[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        target = torch.empty(size, dtype=torch.uint8, device=self._device) if into is None else into
        target[:size].copy_(self._pinned[:size], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return [
            target[place : place + array.nbytes].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
            for place, array in zip(places, arrays, strict=True)
        ]

    def _reserve(self, size: int) -> None:
        on_gpu = self._device.type == "cuda"
        if self._copied is not None:
            self._copied.synchronize()
        if size > len(self._pinned):
            self._pinned = torch.empty(2 * size, dtype=torch.uint8, pin_memory=on_gpu)
            self._copied = torch.cuda.Event() if on_gpu else None


def upload_bytes(arrays: Sequence[npt.NDArray[np.generic]]) -> int:
    """Bytes that `Staging.upload` takes for arrays of these shapes."""
    return sum(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays)
