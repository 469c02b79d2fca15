"""What a gateway exposes: the counts of its parts under the names of the table."""

from __future__ import annotations

from collections.abc import Iterator

from baleen.metrics import Sample
from router.gateway.core import Core


def samples(core: Core) -> Iterator[Sample]:
    """Everything, in the gateway's event loop."""
    meters = core.meters
    yield from (("gateway_requests_total", labels, count) for labels, count in meters.requests.items())
    yield "gateway_active_requests", (), meters.active
    yield "gateway_departures_total", ("disconnected",), meters.disconnects
    yield "gateway_departures_total", ("stalled",), meters.stalls
    yield "gateway_resumable_requests", (), core.streams.num_streams
    yield "gateway_resumable_bytes", (), core.streams.num_bytes
    yield "gateway_resumed_total", (), core.streams.num_resumed
    yield "gateway_routers_lost_total", (), core.engine.routers.num_lost
    yield from core.accounts.samples()
