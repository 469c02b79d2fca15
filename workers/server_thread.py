"""The rank's gRPC server: a thread and an event loop of its own, so that neither waits for the step loop nor delays it.

The step loop hands over one event per step, with one call that costs it microseconds: it goes through a queue and a
thread that wakes the event loop. To wake it directly would be a system call, in which the step loop would give up the
interpreter lock and get it back only after the event loop had done all its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

from baleen.clock import Clock
from baleen.loop_lag import watch_lag
from baleen.metrics import histogram
from baleen.reports import RankInfo
from baleen.telemetry import Log
from baleen.tls_config import TlsConfig
from baleen.v1 import worker_pb2_grpc
from baleen.wire.serving import Health, listen, new_server
from workers.engine.inbox import Intake
from workers.engine.messages import Drain, Ended, Event, HealthReport, PrefillDone, Refused, StepReport
from workers.server import SERVICE, WorkerServicer

HEALTH_INTERVAL_S = 1.0
"""Time between looks at the step loop for `grpc.health.v1`."""

START_TIMEOUT_S = 30.0
"""Longest wait for the server's thread to listen."""


class RankServer:
    """The server in its thread. Every method may be called from any thread."""

    def __init__(
        self,
        address: str,
        inbox: Intake,
        *,
        health: Callable[[], HealthReport],
        drain: Callable[[Drain], None],
        clock: Clock,
        log: Log,
        stall_s: float,
        tls: TlsConfig | None = None,
    ) -> None:
        """Nothing listens before `start`. stall_s: a step loop that stays in one phase for longer is not healthy."""
        # the core's own lines would stand between those of the rank's log
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        self._address = address
        self._health_report = health
        self._drain = drain
        self._log = log
        self._stall_s = stall_s
        self._clock = clock
        self.lag = histogram("event_loop_lag_seconds")
        self._tls = tls or TlsConfig()
        self._servicer = WorkerServicer(inbox, health=health, drain=drain, clock=clock)
        self._started: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._draining = False
        self._calls: SimpleQueue[tuple[Callable[..., None], tuple[object, ...]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="grpc-server", daemon=True)
        self._forwarder = Thread(target=self._forward, name="grpc-forwarder", daemon=True)

    def start(self) -> str:
        """Listen; returns the address with its port. Raises ConfigError if it cannot be had."""
        self._thread.start()
        self._forwarder.start()
        return self._started.result(START_TIMEOUT_S)

    def ready(self, info: RankInfo) -> None:
        """Requests are taken from now on, at once: whoever learns that the rank is ready may call it."""
        self._servicer.ready(info)

    def emit(self, event: Event) -> None:
        """Pass an event of the step loop on to those whom it concerns. Never waits."""
        self._call(self._deliver, event)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, say goodbye and stop to listen, unless that takes longer than `timeout_s`."""
        self._call(self._closing.set)
        self._thread.join(timeout_s)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        self._calls.put((function, arguments))

    def _forward(self) -> None:
        """Pass calls on to the event loop, in order, until that has ended: then nobody listens."""
        with contextlib.suppress(RuntimeError):
            while (call := self._calls.get()) is not None:
                function, arguments = call
                self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, event: Event) -> None:
        sessions = self._servicer.sessions
        match event:
            case StepReport():
                self._draining = event.load.draining
                sessions.report(event)
            case Refused():
                sessions.refused(event)
            case PrefillDone():
                sessions.prefill_done(event)
            case Ended():
                sessions.end(event)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if self._started.done():
                cause = f"the gRPC server failed: {type(error).__name__}: {error}"
                self._log.error(cause)
                # a rank that nobody reaches is of no use
                self._drain(Drain(cause, 0.0))
                raise
            self._started.set_exception(error)
        finally:
            self._calls.put(None)

    async def _serve(self) -> None:
        server, states = new_server(SERVICE)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self._servicer, server)
        address = listen(server, self._address, self._tls)
        await states.set_all(False)
        await server.start()
        self._started.set_result(address)
        watching = [
            asyncio.create_task(self._watch(states)),
            asyncio.create_task(watch_lag(self.lag, self._clock)),
        ]
        await self._closing.wait()
        for task in watching:
            task.cancel()
        await states.set_all(False)
        self._servicer.sessions.end(Ended("the rank ends"))
        await server.stop(1.0)

    async def _watch(self, states: Health) -> None:
        """Health means progress: a step loop that is stuck is not healthy."""
        while True:
            report = self._health_report()
            alive = report.ended is None and (not self._servicer.is_ready or report.seconds_in_phase < self._stall_s)
            await states.set("", alive)
            await states.set(SERVICE, alive and self._servicer.is_ready and not self._draining)
            await asyncio.sleep(HEALTH_INTERVAL_S)
