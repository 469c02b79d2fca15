"""What a /metrics endpoint says, read by Prometheus's own parser and compared with our table."""

from __future__ import annotations

import asyncio
from urllib.error import HTTPError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from baleen.metric_table import PREFIX, TABLE, Metric

Series = dict[tuple[str, ...], float]


class Scrape:
    """One answer. `text` is all of it; families by their name in the table."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {}
        for family in text_string_to_metric_families(text):
            name = family.name.removeprefix(PREFIX)
            self.families[f"{name}_total" if family.type == "counter" else name] = family

    def series(self, name: str, suffix: str = "") -> Series:
        """Values by the values of the labels, in the order of the table. suffix: `_sum` of a histogram."""
        metric = next(metric for metric in TABLE if metric.name == name)
        return {
            tuple(sample.labels[label] for label in metric.labels): sample.value
            for sample in self.families[name].samples
            if sample.name == PREFIX + name + suffix
        }

    def counts(self, name: str) -> Series:
        """Observations of each series of a histogram; one with bounds below 0 has no sample for it alone."""
        metric = next(metric for metric in TABLE if metric.name == name)
        return {
            tuple(sample.labels[label] for label in metric.labels): sample.value
            for sample in self.families[name].samples
            if sample.labels.get("le") == "+Inf"
        }

    def value(self, name: str, *labels: str) -> float:
        """One series."""
        return self.series(name)[labels]

    def count(self, name: str, *labels: str) -> float:
        """Observations of one series of a histogram."""
        return self.counts(name)[labels]

    def differences(self, process: str) -> list[str]:
        """What does not agree with the table: names, kinds, help, labels, series."""
        expected = {metric.name: metric for metric in TABLE if process in metric.processes}
        wrong = [f"{name} is missing or not expected" for name in expected.keys() ^ self.families.keys()]
        return wrong + [
            f"{name}: {what}"
            for name, metric in expected.items()
            if name in self.families
            for what in self._differences_of(metric)
        ]

    def _differences_of(self, metric: Metric) -> list[str]:
        family = self.families[metric.name]
        wrong = []
        if (family.type, family.documentation) != (metric.kind, metric.help):
            wrong.append(f"is {family.type}: {family.documentation}")
        if metric.series:
            found = set(self.counts(metric.name) if metric.kind == "histogram" else self.series(metric.name))
            if found != set(metric.series):
                wrong.append(f"has series {found}")
        if metric.kind == "histogram":
            bounds = {float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")}
            if bounds != {*metric.buckets, float("inf")}:
                wrong.append(f"has buckets {bounds}")
        return wrong


async def scrape(address: str) -> Scrape:
    """GET /metrics. Raises AssertionError on any other status than 200."""

    def get() -> str:
        try:
            opened = urlopen(f"http://{address}/metrics", timeout=20)
        except HTTPError as error:
            with error:
                raise AssertionError(f"status {error.code}") from None
        with opened as answer:
            assert answer.headers["content-type"].startswith("text/plain")
            text: str = answer.read().decode()
            return text

    return Scrape(await asyncio.to_thread(get))
