"""docs/metrics.md is what the table says, and the table keeps to the rules of names."""

import re
from pathlib import Path

from baleen.metric_table import BY_NAME, CODES, TABLE
from baleen.metrics_page import page
from baleen.wire.errors import TABLE as ERRORS

ROOT = Path(__file__).parents[2]
UNITS = ("_seconds", "_tokens", "_requests", "_blocks", "_bytes", "_workers", "_info")
PLAIN = {"retry_budget_remaining", "kv_index_breaker_open", "kv_index_lease_held"}


def test_the_page_is_current():
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == page(), "run `make docs`"


def test_names_follow_the_conventions():
    assert len(BY_NAME) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name)
        assert metric.name.endswith("_total") is (metric.kind == "counter"), metric.name
        assert metric.kind == "counter" or metric.name.endswith(UNITS) or metric.name in PLAIN, metric.name
        assert (metric.kind == "histogram") is bool(metric.buckets)
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_series_are_few_and_known_beforehand():
    for metric in TABLE:
        assert len(metric.series) <= 64 and len(set(metric.series)) == len(metric.series)
        assert {len(labels) for labels in metric.series} <= {len(metric.labels)}
        if not metric.series:
            assert metric.kind == "gauge", f"{metric.name} has series without bound"


def test_every_status_of_a_failed_call_has_its_series():
    assert {wire.code.name for wire in ERRORS.values()} <= set(CODES)
