"""What a step loop counts beside its scheduler: the time of each part of a step, ends, how soon an abort frees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from baleen.ids import RequestId
from baleen.metric_table import STAGES, Labels
from baleen.metrics import histogram, histograms
from baleen.reports import FinishReason


class LoopMeters:
    """Written by the step loop, read by anybody."""

    def __init__(self) -> None:
        self.steps = histograms("step_seconds")
        self.ends: Counter[Labels] = Counter()
        self.cancel_release = histogram("cancel_release_seconds")
        self._stages = [self.steps[(stage,)] for stage in STAGES]
        self._aborted: dict[RequestId, float] = {}

    def stepped(self, times: Sequence[float]) -> None:
        """A step is over. times: its begin, and the end of each stage."""
        for stage, begin, end in zip(self._stages, times, times[1:], strict=False):
            stage.observe(end - begin)

    def aborting(self, request_id: RequestId, asked_at: float) -> None:
        """A request that has not ended is to end."""
        self._aborted[request_id] = asked_at

    def ended(self, request_id: RequestId, finish: FinishReason, now: float) -> None:
        """A completion is over and holds nothing any more."""
        self.ends[(finish.value,)] += 1
        asked_at = self._aborted.pop(request_id, None)
        if asked_at is not None and finish is FinishReason.CANCELLED:
            self.cancel_release.observe(now - asked_at)
