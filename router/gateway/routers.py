"""The routers of a gateway: which of them answer, and whose turn it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baleen.telemetry import Log
from baleen.v1 import inference_pb2_grpc
from baleen.wire.channel import open_channel
from router.gateway.line import Line

PAUSE_S = 0.1
"""Between a router's last word of itself and the next question; while it is away gRPC waits until it can connect."""

RECHECK_S = 0.5
"""Until routers that all refused a request are asked again, unless something changes."""


class Link:
    """One router, for one event loop. answers: it has said that it takes requests, and has not left since."""

    def __init__(self, address: str, log: Log, on_change: Callable[[], None]) -> None:
        self.address = address
        self.channel = open_channel(address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.line = Line(self.stub)
        self.answers = False
        self._log = log
        self._on_change = on_change
        self._watch = asyncio.create_task(self._follow(), name=f"health of the router at {address}")

    async def close(self) -> None:
        """End the connection, and whatever runs on it."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self.line.close()
        await self.channel.close(None)

    async def _follow(self) -> None:
        health = health_pb2_grpc.HealthStub(self.channel)
        while True:
            call = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            cause = "it leaves"
            try:
                # a router that leaves waits for its calls to end, so that this one must
                while isinstance(news := await call.read(), health_pb2.HealthCheckResponse):
                    if news.status != health_pb2.HealthCheckResponse.SERVING:
                        break
                    self._become(True)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    # one that says nothing of its health is asked whatever happens
                    self._become(True)
                    return
                cause = error.details() or error.code().name
            finally:
                call.cancel()
            self._become(False, cause)
            await asyncio.sleep(PAUSE_S)

    def _become(self, answers: bool, cause: str = "") -> None:
        if answers == self.answers:
            return
        self.answers = answers
        if answers:
            self._log.info("router answers", router=self.address)
        else:
            self._log.warning("router does not answer", router=self.address, cause=cause)
        self._on_change()


class Routers:
    """All of them, for the running event loop."""

    def __init__(self, addresses: Sequence[str], *, log: Log) -> None:
        self.log = log
        self.num_lost = 0
        self._turns = itertools.count()
        self._changed: asyncio.Future[None] | None = None
        self.links = [Link(address, log, self._announce) for address in addresses]

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(link.close() for link in self.links))

    def by_hope(self) -> list[Link]:
        """All of them, those that answer first."""
        return sorted(self.links, key=lambda link: not link.answers)

    def pick(self, refused: Collection[Link] = ()) -> Link | None:
        """The next one in turn of those that answer and have not `refused`; None if there is none."""
        found = [link for link in self.links if link.answers and link not in refused]
        return found[next(self._turns) % len(found)] if found else None

    async def one(self, refused: set[Link], *, timeout_s: float) -> Link | None:
        """As `pick`, once there is one; None if there is none in time.

        Where all that answer have refused, they are forgiven after a while, or when something has changed.
        """
        until = asyncio.get_running_loop().time() + timeout_s
        while (link := self.pick(refused)) is None:
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0:
                return None
            await self._change(min(left_s, RECHECK_S) if refused else left_s)
            refused.clear()
        return link

    async def _change(self, timeout_s: float) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=timeout_s)

    def _announce(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)
