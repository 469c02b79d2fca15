"""Numbers with their scales, as they are stored and as they travel."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rows or a weight matrix: float8_e4m3fn values with float32 scales, or bfloat16 or float32 values without.

    Scales of rows [R, K] are [R, K / 128]. Scales of weights [..., N, K] are [..., N / 128 rounded up, K / 128].
    """

    values: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def is_float8(self) -> bool:
        """Whether there are scales to multiply with."""
        return self.scales is not None
