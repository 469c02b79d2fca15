"""GET /metrics: the samples of a process, checked against the table, in the text format of Prometheus."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from socketserver import ThreadingMixIn
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from baleen import ports
from baleen.errors import ConfigError
from baleen.metric_table import BY_NAME, PREFIX, TABLE, Labels, Metric, Process
from baleen.metrics import Histogram, Sample

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Samples(Collector):
    """What a process knows, at each scrape anew. Series that it did not mention stand at 0."""

    def __init__(self, process: Process, read: Callable[[], Iterable[Sample]]) -> None:
        self._process = process
        self._read = read

    def collect(self) -> Iterator[Family]:
        """Every metric that the table gives to this process. AssertionError on a sample that it does not."""
        found: dict[str, dict[Labels, float | Histogram]] = defaultdict(dict)
        for name, labels, value in (("build_info", (version_of_baleen(),), 1.0), *self._read()):
            metric = BY_NAME[name]
            assert self._process in metric.processes, f"{name} is none of the {self._process}'s"
            assert labels in metric.series if metric.series else len(labels) == len(metric.labels), (name, labels)
            found[name][labels] = value
        for metric in TABLE:
            if self._process in metric.processes:
                yield _family(metric, found[metric.name])


class MetricsServer:
    """Serves `host:port`, where port 0 is a free one, from a thread of its own."""

    def __init__(self, listen: str, samples: Samples, *, key: str, takes_over: bool = False) -> None:
        """key: name of the setting that `listen` is from. takes_over: another process listens there until it leaves.

        Raises ConfigError if it cannot be listened on.
        """
        host = listen.rpartition(":")[0]
        registry = CollectorRegistry()
        registry.register(samples)
        try:
            self._server = _Server(ports.listener(listen, takes_over=takes_over))
        except OSError as error:
            raise ConfigError(
                f"{key} is {listen!r}, where metrics cannot be served: {error.strerror}; another port, or none, helps"
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        self.address = f"{host}:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; a scrape that is being answered may end."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a scrape, on a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    """Scrapes are in no log."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def _family(metric: Metric, values: dict[Labels, float | Histogram]) -> Family:
    name = PREFIX + metric.name
    # a gauge that nobody told is not known, and 0 would be a lie
    series = dict.fromkeys(metric.series, 0.0) if metric.kind != "gauge" else {}
    family: Family
    if metric.kind == "histogram":
        family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels in metric.series:
            value = values.get(labels, Histogram(metric.buckets))
            assert isinstance(value, Histogram)
            family.add_metric(labels, _buckets(value), value.total)
        return family
    family = (
        CounterMetricFamily(name, metric.help, labels=metric.labels)
        if metric.kind == "counter"
        else GaugeMetricFamily(name, metric.help, labels=metric.labels)
    )
    for labels, number in (series | values).items():
        assert not isinstance(number, Histogram)
        family.add_metric(labels, number)
    return family


def _buckets(value: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(repr, value.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(list(value.counts))), strict=True))


def version_of_baleen() -> str:
    """Of the installed package."""
    try:
        return version("baleen")
    except PackageNotFoundError:
        return "unknown"
