"""The router process: puts the parts together, serves until it is told to stop, drains."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baleen import ports
from baleen.clock import Clock, SystemClock
from baleen.errors import BaleenError, ConfigError
from baleen.exposition import MetricsServer, Samples
from baleen.loop_lag import watch_lag
from baleen.telemetry import Log, write_stderr
from baleen.text.tokenizer import load_tokenizer
from baleen.v1 import inference_pb2, inference_pb2_grpc, router_pb2, router_pb2_grpc
from baleen.wire.channel import SHARING_SERVER_OPTIONS
from router.admission import Admission, AdmissionParameters
from router.breaker import Breaker
from router.choice import Chooser, Lookup, NoIndex, Placement
from router.config import RouterProcessConfig, load_router_config
from router.fetches import FetchLog
from router.index import PrefixIndex, open_client
from router.members import Members, watch
from router.metrics import Parts
from router.policy.explain import Explainer
from router.policy.registry import POLICIES
from router.proxy import Proxy
from router.quarantine import Quarantine
from router.record import Records
from router.retry import RetryBudget
from router.service import InferenceService
from router.sessions import RankSessions
from router.status import RouterServicer

if TYPE_CHECKING:
    from baleen.tracing import Tracing

SETTLE_S = 0.1
"""Before it stops to listen: calls that have come by then are still taken, and would end as cancelled otherwise."""

STATUS_NAME = router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
SERVICE_NAME = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name


class Router:
    """One router, from `start` to `stop`. For one event loop; a process may run several."""

    def __init__(self, config: RouterProcessConfig, *, clock: Clock | None = None, log: Log | None = None) -> None:
        """Raises CheckpointError if the model's tokenizer cannot be read."""
        self._config = config
        clock = clock or SystemClock()
        self._log = log or Log(config.log_level, part="router")
        self._members = Members()
        admission: Admission[Placement] = Admission(
            AdmissionParameters(
                most_waiting=config.max_queued,
                slo_s=config.slo_first_token_s,
                rank_wait_s=config.limits.rank_wait_s,
            ),
            clock,
        )
        self._sessions = RankSessions(
            self._members,
            clock,
            self._log,
            config.session,
            on_change=admission.capacity_changed,
            tls=config.tls,
        )
        self._index: PrefixIndex | None = None
        if config.redis.url:
            self._index = PrefixIndex(open_client(config.redis), config.cluster, Breaker(clock))
        lookup: Lookup = self._index or NoIndex()
        explainer, records = Explainer(config.parameters), Records()
        parameters = config.parameters
        fetches = FetchLog(block_bytes=parameters.block_bytes, handoff_s=parameters.handoff_s, now=clock.now)
        chooser = Chooser(self._members, lookup, POLICIES[config.policy], parameters, explainer, fetches=fetches)
        retries = RetryBudget(share=config.retry_share, reserve=config.retry_reserve)
        quarantine = Quarantine(clock, seconds=config.quarantine_s)
        tokenizer = load_tokenizer(Path(config.model)) if config.model else None
        self._tracing = self._open_tracing(clock)
        self._proxy = Proxy(
            sessions=self._sessions,
            chooser=chooser,
            admission=admission,
            records=records,
            retries=retries,
            fetches=fetches,
            quarantine=quarantine,
            tokenizer=tokenizer,
            limits=config.limits,
            clock=clock,
            log=self._log,
            tracing=self._tracing,
        )
        self._service = InferenceService(
            self._proxy,
            self._members,
            explainer,
            records,
            tokenizer,
            model_name=config.model_name,
            max_deadline_s=config.max_deadline_s,
            clock=clock,
            log=self._log,
        )
        self._parts = Parts(
            proxy=self._proxy,
            members=self._members,
            admission=admission,
            chooser=chooser,
            meters=records.meters,
            retries=retries,
            quarantine=quarantine,
            index=self._index,
        )
        self._status = RouterServicer(self._parts, policy=config.policy, is_leaving=lambda: self._is_leaving)
        self._metrics: MetricsServer | None = None
        self._is_leaving = False
        self._clock = clock
        self._lag: asyncio.Task[None] | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def members(self) -> Members:
        """The ranks that it knows."""
        return self._members

    @property
    def num_active(self) -> int:
        """Requests that have not ended."""
        return self._proxy.num_active

    @property
    def metrics_address(self) -> str:
        """Where it answers GET /metrics, or empty."""
        return self._status.metrics_address

    async def start(self) -> str:
        """Listen and find the ranks; returns the address. Raises ConfigError if the address cannot be taken."""
        server = grpc.aio.server(options=SHARING_SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        router_pb2_grpc.add_RouterServiceServicer_to_server(self._status, server)
        reflection.enable_server_reflection(
            [SERVICE_NAME, STATUS_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME], server
        )
        host = self._config.listen.rpartition(":")[0]
        try:
            if not self._config.takes_over:
                ports.require_unused(self._config.listen)
            port = server.add_insecure_port(self._config.listen)
            if self._config.takes_over:
                ports.draw_connections(self._config.listen)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"listen is {self._config.listen!r}, which cannot be listened on") from error
        self._serve_metrics()
        await server.start()
        self._server = server
        if self._index is not None:
            self._watch = asyncio.create_task(watch(self._members, self._index, self._sessions.follow))
        else:
            self._sessions.connect([address.strip() for address in self._config.ranks.split(",")])
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        address = f"{host}:{port}"
        self._log.info("router listens", address=address, policy=self._config.policy)
        return address

    def _open_tracing(self, clock: Clock) -> Tracing | None:
        if self._config.traces.exporter == "off":
            return None
        from baleen.tracing import Tracing

        return Tracing(self._config.traces, "baleen-router", clock=clock, log=self._log)

    def _serve_metrics(self) -> None:
        listen, loop = self._config.listen_metrics, asyncio.get_running_loop()
        if listen:
            samples = Samples("router", lambda: self._parts.read_from(loop))
            self._metrics = MetricsServer(listen, samples, key="listen_metrics", takes_over=self._config.takes_over)
            self._status.metrics_address = self._metrics.address
        self._lag = asyncio.create_task(watch_lag(self._parts.lag, self._clock))

    async def stop(self, drain_s: float | None = None) -> None:
        """Take no new connections, let what has come end for `drain_s` seconds, then end it, and leave."""
        self._is_leaving = True
        await self._health.enter_graceful_shutdown()
        drain_s = self._config.drain_timeout_s if drain_s is None else drain_s
        if self._metrics is not None:
            # both addresses are free at once for whoever takes the place of this router
            await asyncio.to_thread(self._metrics.close)
        if drain_s > 0:
            await asyncio.sleep(SETTLE_S)
        if self._server is not None:
            stopping = asyncio.create_task(self._server.stop(drain_s))
            # clients that are to open new streams hear first that it is not on this connection
            await asyncio.sleep(0)
            self._service.end_sessions()
            await stopping
        self._parts.admission.close()
        tasks = [task for task in (self._watch, self._lag) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sessions.close()
        if self._index is not None:
            await self._index.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._log.info("router left")


async def serve(config: RouterProcessConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    router = Router(config)
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, leave.set)
    try:
        await router.start()
        await leave.wait()
    finally:
        await router.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a router; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m router.main", description="The baleen router.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the router's configuration")
    options = parser.parse_args(arguments)
    try:
        uvloop.run(serve(load_router_config(options.config)))
    except BaleenError as error:
        write_stderr(f"router: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
