"""How fast a rank computes, measured on its own steps."""

from __future__ import annotations

from workers.engine.batch import Batch

WEIGHT = 0.2
"""Share of the newest step in a moving average."""


class SpeedMeter:
    """Moving averages of prefill and decode speed, in tokens per second, and of the time of a step; 0 until measured.

    A step that holds any prompt tokens counts for the prefill speed, with its prompt tokens and its whole time, so
    that the time which decoding takes from prefill is part of the figure. Any other step counts for the decode speed.
    """

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0
        self.step_s = 0.0

    def measure(self, batch: Batch, seconds: float) -> None:
        """Take in one step."""
        if seconds <= 0:
            return
        self.step_s = _averaged(self.step_s, seconds)
        num_prefill = 0
        if batch.num_tokens > len(batch.items):
            num_prefill = batch.num_tokens - sum(item.num_tokens == 1 for item in batch.items)
        if num_prefill:
            self.prefill_tokens_per_s = _averaged(self.prefill_tokens_per_s, num_prefill / seconds)
        else:
            self.decode_tokens_per_s = _averaged(self.decode_tokens_per_s, batch.num_tokens / seconds)


def _averaged(average: float, newest: float) -> float:
    return newest if average == 0 else average + WEIGHT * (newest - average)
