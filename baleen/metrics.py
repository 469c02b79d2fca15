"""Numbers as their owners keep them, without any library: plain counts, histograms, and samples of both."""

from __future__ import annotations

from bisect import bisect_left

from baleen.metric_table import BY_NAME, Labels


class Histogram:
    """Observations by bucket. One thread writes, any may read."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Note `value`, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count


Sample = tuple[str, Labels, float | Histogram]
"""Name without the prefix, values of the labels, and what it is now."""


def histogram(name: str) -> Histogram:
    """An empty one of the metric `name`."""
    return Histogram(BY_NAME[name].buckets)


def histograms(name: str) -> dict[Labels, Histogram]:
    """An empty one for each of its series."""
    return {labels: Histogram(BY_NAME[name].buckets) for labels in BY_NAME[name].series}
