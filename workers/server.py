"""The rank's gRPC service: from messages to commands, from events to messages. No logic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import DecodeError

from baleen.clock import Clock
from baleen.errors import BaleenError, DeadlineExceeded, DrainingError, EpochEnded, InvalidRequest, NotReady
from baleen.reports import RankInfo
from baleen.v1 import worker_pb2, worker_pb2_grpc
from baleen.wire.channel import SESSION_KEY
from baleen.wire.errors import abort
from baleen.wire.reports import info_to_proto
from baleen.wire.serving import metadata_of
from workers.engine.inbox import Intake
from workers.engine.messages import (
    Drain,
    FetchDone,
    HealthReport,
    Refused,
    ReleaseReservation,
    Reservation,
    Reserve,
    WithdrawFetch,
)
from workers.sessions import RouterSession, SessionTable
from workers.wire import (
    abort_from_proto,
    fetch_done_to_proto,
    fetch_from_proto,
    health_to_proto,
    prefill_from_proto,
    refused_to_proto,
    reservation_to_proto,
    seconds,
    submit_from_proto,
)

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name

_Response = TypeVar("_Response")
_Context = grpc.aio.ServicerContext[Any, Any]


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """The calls of `baleen.v1.WorkerService`; all in the event loop of the server."""

    def __init__(
        self,
        inbox: Intake,
        *,
        health: Callable[[], HealthReport],
        drain: Callable[[Drain], None],
        clock: Clock,
    ) -> None:
        self._inbox = inbox
        self._health = health
        self._drain = drain
        self._clock = clock
        self._info: RankInfo | None = None
        self.sessions = SessionTable(inbox.put)

    @property
    def is_ready(self) -> bool:
        """Whether the rank has said that it takes requests."""
        return self._info is not None

    def ready(self, info: RankInfo) -> None:
        """Requests are taken from now on."""
        self._info = info

    async def Session(
        self, request_iterator: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        """One router, until either end closes."""
        try:
            opened = worker_pb2.SessionResponse(opened=worker_pb2.Opened(info=info_to_proto(self._serving())))
        except BaleenError as error:
            await abort(context, error)
        metadata = metadata_of(context)
        session = self.sessions.open(metadata.get("traceparent", ""), opened, metadata.get(SESSION_KEY, ""))
        # called however the call ends, also where this generator is left waiting
        context.add_done_callback(lambda _: self.sessions.close(session))
        reading = asyncio.create_task(self._read(session, request_iterator))
        try:
            while (response := await session.next()) is not None:
                yield response
            if reading.done():
                await _answered(context, reading)
        finally:
            reading.cancel()

    async def Reserve(self, request: worker_pb2.ReserveRequest, context: Any) -> worker_pb2.ReserveResponse:
        """Blocks for a transfer to this rank."""
        response = await _answered(context, self._reserve(request, context.time_remaining()))
        if name := metadata_of(context).get(SESSION_KEY):
            self.sessions.reserved(name, response.ticket, request.number)
        return response

    async def ReleaseReservation(
        self, request: worker_pb2.ReleaseReservationRequest, context: Any
    ) -> worker_pb2.ReleaseReservationResponse:
        """Give them back."""
        self.sessions.release_ticket(request.ticket)
        return worker_pb2.ReleaseReservationResponse()

    async def Fetch(self, request: worker_pb2.FetchRequest, context: Any) -> worker_pb2.FetchResponse:
        """Cached blocks for another rank."""
        return await _answered(context, self._fetch(request, metadata_of(context).get("traceparent", "")))

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        """Begin to leave."""
        return await _answered(context, self._begin_drain(request))

    async def GetInfo(self, request: worker_pb2.GetInfoRequest, context: Any) -> worker_pb2.GetInfoResponse:
        """Facts of this life of the rank."""
        return await _answered(context, self._get_info())

    def _serving(self) -> RankInfo:
        """Facts of the rank. Raises NotReady before it takes requests, EpochEnded after."""
        if self.sessions.ended is not None:
            raise EpochEnded(self.sessions.ended.cause)
        if self._info is None:
            health = self._health()
            raise NotReady(f"rank {health.rank} is starting ({health.phase} since {health.seconds_in_phase:.1f} s)")
        return self._info

    async def _read(self, session: RouterSession, requests: AsyncIterator[worker_pb2.SessionRequest]) -> None:
        try:
            async for request in requests:
                self._obey(session, request)
        except DecodeError as error:
            raise InvalidRequest(f"the stream is not of this protocol: {error}", field="message") from error
        finally:
            self.sessions.close(session)

    def _obey(self, session: RouterSession, request: worker_pb2.SessionRequest) -> None:
        message = getattr(request, request.WhichOneof("message") or "", None)
        try:
            match message:
                case worker_pb2.Submit():
                    submit = submit_from_proto(message, now=self._clock.now(), traceparent=session.traceparent)
                    self.sessions.claim(session, submit.request_id, submit.sampling.n)
                    self._put(submit)
                    if submit.ticket is not None:
                        self.sessions.ticket_used(submit.ticket)
                case worker_pb2.Prefill():
                    prefill = prefill_from_proto(message, now=self._clock.now(), traceparent=session.traceparent)
                    self.sessions.claim(session, prefill.request_id, 1)
                    self._put(prefill)
                    if prefill.ticket is not None:
                        self.sessions.ticket_used(prefill.ticket)
                case worker_pb2.Abort():
                    command = abort_from_proto(message, now=self._clock.now())
                    if self.sessions.owns(session, command.request_id):
                        self._inbox.put(command)
                case worker_pb2.HealthQuery():
                    self.sessions.keep_only(session, message.wanted_reservations, message.last_reservation)
                    session.say(health_to_proto(self._health()))
                case _:
                    raise InvalidRequest("the message says nothing that this version knows", field="message")
        except BaleenError as error:
            request_id = getattr(message, "request_id", None)
            session.say(
                refused_to_proto(Refused(request_id, type(error).__name__, getattr(error, "field", None), str(error)))
            )

    def _put(self, command: Any) -> None:
        if not self._inbox.put(command):
            self.sessions.release(command.request_id)
            raise DrainingError("the rank has left")

    async def _reserve(
        self, request: worker_pb2.ReserveRequest, remaining_s: float | None
    ) -> worker_pb2.ReserveResponse:
        self._serving()
        timeout_s = seconds(request.timeout_s, "timeout_s", above=0.0)
        reply: Future[Reservation] = Future()
        command = Reserve(
            token_ids=tuple(request.token_ids), cache_salt=request.cache_salt, timeout_s=timeout_s, reply=reply
        )
        if not self._inbox.put(command):
            raise DrainingError("the rank has left")
        wait_s = timeout_s if remaining_s is None else min(timeout_s, remaining_s)
        try:
            # shielded: the step loop answers whether or not somebody still waits
            return reservation_to_proto(await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(reply)), wait_s))
        except BaseException as error:
            reply.add_done_callback(self._give_back)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"no reservation within {wait_s:.3f} s") from error
            raise

    def _give_back(self, reply: Future[Reservation]) -> None:
        """Whoever asked has gone."""
        if not reply.cancelled() and reply.exception() is None:
            self._inbox.put(ReleaseReservation(reply.result().ticket))

    async def _fetch(self, request: worker_pb2.FetchRequest, traceparent: str) -> worker_pb2.FetchResponse:
        self._serving()
        reply: Future[FetchDone] = Future()
        command = fetch_from_proto(request, reply, now=self._clock.now(), traceparent=traceparent)
        if not self._inbox.put(command):
            raise DrainingError("the rank has left")
        try:
            # shielded: the step loop answers whether or not somebody still waits; it keeps the deadline, too
            return fetch_done_to_proto(await asyncio.shield(asyncio.wrap_future(reply)))
        except asyncio.CancelledError:
            self._inbox.put(WithdrawFetch(command))
            raise

    async def _begin_drain(self, request: worker_pb2.DrainRequest) -> worker_pb2.DrainResponse:
        timeout_s = seconds(request.timeout_s, "timeout_s") if request.HasField("timeout_s") else None
        drain = Drain(request.reason or "told to drain", timeout_s)
        # in a thread: a rank that is starting ends at once, and then this server too, which has to answer first
        Thread(target=self._drain, args=(drain,), name="drain", daemon=True).start()
        return worker_pb2.DrainResponse(num_requests=self.sessions.num_requests)

    async def _get_info(self) -> worker_pb2.GetInfoResponse:
        return worker_pb2.GetInfoResponse(info=info_to_proto(self._serving()))


async def _answered(context: _Context, answer: Awaitable[_Response]) -> _Response:
    """The answer of a call; an error of ours becomes its status."""
    try:
        return await answer
    except BaleenError as error:
        await abort(context, error)
