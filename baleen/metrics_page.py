"""docs/metrics.md, made from the table.

usage: python -m baleen.metrics_page FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from baleen.metric_table import PREFIX, TABLE, Metric, Process

_INTRODUCTION = """# Metrics

Made from `baleen/metric_table.py` by `make docs`; what stands here is what is exposed, and nothing else.

Every router and every rank answers `GET /metrics` on a port of its own, in the text format of Prometheus. The first
router of a cluster that `baleen up` starts does so on 127.0.0.1:9464 (`router.metrics_port`, replica i on the i-th port
after it), ranks on free ports (`telemetry.rank_metrics`). `baleen status` shows all addresses, and the leases in Redis
hold those of the ranks. A rank or router that is started alone has `serve.metrics_listen` and `listen_metrics`.

Times are seconds. The series of a metric are known beforehand: a label has the values named here and no others, and
counters and histograms stand at 0 from the start. A gauge is absent until its value is known.

Not exposed, since nothing measures it yet: how uneven the load of the experts and the steps of a group's ranks are,
why groups were started again (`baleen logs` tells), entries of the index in Redis (`INFO keyspace` there), shares of
tenants, tokens computed again after a move, and anything of speculation. Processor time and memory are what the node
exporter and the runtime of the containers tell.
"""

_TITLES: dict[Process, str] = {"gateway": "Gateways", "router": "Routers", "rank": "Ranks"}


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for process, title in _TITLES.items():
        rows = [_row(metric) for metric in TABLE if process in metric.processes]
        parts.append(
            f"## {title}\n\n| name | kind | labels | buckets | what |\n| --- | --- | --- | --- | --- |\n"
            + "".join(rows)
        )
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    buckets = ", ".join(f"{bound:g}" for bound in metric.buckets)
    return f"| `{PREFIX}{metric.name}` | {metric.kind} | {_labels(metric)} | {buckets} | {metric.help} |\n"


def _labels(metric: Metric) -> str:
    if not metric.labels:
        return ""
    if not metric.series:
        return ", ".join(f"`{label}`" for label in metric.labels)
    columns = zip(*metric.series, strict=True)
    return "; ".join(
        f"`{label}`: {', '.join(dict.fromkeys(values))}" for label, values in zip(metric.labels, columns, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m baleen.metrics_page", description="Write the page on metrics.")
    parser.add_argument("file", type=Path)
    parser.parse_args(arguments).file.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
