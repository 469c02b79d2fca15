"""One stream to one rank: submits and aborts go out, what each step brought comes in and is handed to its request."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc

from baleen.clock import Clock
from baleen.errors import BaleenError, NotReady
from baleen.ids import Incarnation, RequestId
from baleen.reports import Load, PromptReport, RankInfo
from baleen.tls_config import TlsConfig
from baleen.v1 import worker_pb2, worker_pb2_grpc
from baleen.wire.channel import SESSION_KEY, open_channel
from baleen.wire.errors import error_from_failure, error_from_rpc
from baleen.wire.reports import info_from_proto, load_from_proto, output_from_proto, prompt_logprobs_from_proto
from baleen.wire.sampling import sampling_to_proto
from router.messages import (
    FetchEnded,
    Mailbox,
    PrefillEnded,
    RankEvent,
    RankLost,
    RankPrefill,
    RankRefused,
    RankSubmission,
    Reservation,
)
from router.wanted import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTimes:
    """Seconds. open_s: until the rank must have answered. probe_s: between questions whether it lives.

    silence_s: without any message, after which it is lost. unary_s: most time of one Reserve.
    """

    open_s: float = 5.0
    probe_s: float = 1.0
    silence_s: float = 5.0
    unary_s: float = 5.0


class SessionLost(BaleenError):
    """The stream to a rank ended; the message says why."""


class RankSession:
    """One stream, from its opening to its loss. Everything runs in one event loop."""

    def __init__(
        self,
        address: str,
        *,
        expected: Incarnation | None,
        clock: Clock,
        times: SessionTimes,
        on_load: Callable[[RankInfo, Load], None],
        tls: TlsConfig | None = None,
    ) -> None:
        """expected: the life of the rank that must answer there; None takes whichever does."""
        self.address = address
        self.info: RankInfo | None = None
        self._expected = expected
        self._clock = clock
        self._times = times
        self._on_load = on_load
        self._tls = tls
        self._mailboxes: dict[RequestId, Mailbox] = {}
        # what is reserved under this name ends with the session, should this router not live to release it
        self._metadata = ((SESSION_KEY, secrets.token_hex(8)),)
        self._wanted = Wanted()
        self._outbox: asyncio.Queue[worker_pb2.SessionRequest | None] = asyncio.Queue()
        self._channel: grpc.aio.Channel | None = None
        self._stub: worker_pb2_grpc.WorkerServiceAsyncStub | None = None
        self._heard = 0.0
        self._lost: str | None = None
        self._releases: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether the rank has answered and is not lost."""
        return self.info is not None and self._lost is None

    @property
    def num_requests(self) -> int:
        """Requests that have a mailbox here."""
        return len(self._mailboxes)

    async def run(self, on_open: Callable[[], None]) -> str:
        """Open the stream and read it until it ends; returns why it did. Every request on it is told."""
        cause = "the router closed the session"
        self._channel = open_channel(self.address, tls=self._tls)
        try:
            self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)
            await self._follow(self._stub, on_open)
        except grpc.aio.AioRpcError as error:
            cause = f"{error.code().name}: {error.details()}"
        except (SessionLost, TimeoutError) as error:
            cause = str(error) or f"no answer within {self._times.open_s:g} s"
        finally:
            self._lose(cause)
            await asyncio.gather(*self._releases, return_exceptions=True)
            await self._channel.close(None)
        return cause

    async def _follow(self, stub: worker_pb2_grpc.WorkerServiceAsyncStub, on_open: Callable[[], None]) -> None:
        call = stub.Session(self._outgoing(), metadata=self._metadata)
        watch: asyncio.Task[None] | None = None
        try:
            messages = aiter(call)
            async with asyncio.timeout(self._times.open_s):
                self._check_opened(await anext(messages))
            self._heard = self._clock.now()
            watch = asyncio.create_task(self._watch(call))
            on_open()
            async for message in messages:
                self._heard = self._clock.now()
                self._take(message)
            raise SessionLost("the rank closed the stream")
        except StopAsyncIteration:
            raise SessionLost("the rank closed the stream before it opened") from None
        except asyncio.CancelledError:
            # the watch cancels the call when nothing is heard; everything else is the end of the router
            if self._lost is None:
                raise
            raise SessionLost(self._lost) from None
        finally:
            if watch is not None:
                watch.cancel()
            call.cancel()

    def _check_opened(self, message: worker_pb2.SessionResponse) -> None:
        if message.WhichOneof("message") != "opened":
            raise SessionLost("the rank did not open the session")
        info = info_from_proto(message.opened.info)
        if self._expected is not None and info.incarnation != self._expected:
            raise SessionLost(f"{self.address} is {info.incarnation} now, no longer {self._expected}")
        self.info = info

    async def _outgoing(self) -> AsyncIterator[worker_pb2.SessionRequest]:
        # None ends it: the library waits for the next message with a task that nobody else ends
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _watch(
        self, call: grpc.aio.StreamStreamCall[worker_pb2.SessionRequest, worker_pb2.SessionResponse]
    ) -> None:
        while True:
            asleep = self._clock.now()
            await asyncio.sleep(self._times.probe_s)
            now = self._clock.now()
            late = now - asleep - self._times.probe_s
            if late > self._times.probe_s:
                # this process got no time: what ranks said meanwhile is there, and was not read yet
                self._heard = min(now, self._heard + late)
            silence = now - self._heard
            if silence > self._times.silence_s:
                self._lose(f"nothing heard for {silence:.1f} s")
                call.cancel()
                return
            self._outbox.put_nowait(worker_pb2.SessionRequest(health_query=self._wanted.query()))

    def _take(self, message: worker_pb2.SessionResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "step_report":
            report = message.step_report
            for prompt in report.prompts:
                request_id = RequestId(prompt.request_id)
                self._give(request_id, PromptReport(request_id, prompt_logprobs_from_proto(prompt.logprobs)))
            for output in report.outputs:
                mailbox = self._mailboxes.get(RequestId(output.request_id))
                if mailbox is not None:
                    mailbox.put(output_from_proto(output))
            assert self.info is not None
            if report.HasField("load"):
                self._on_load(self.info, load_from_proto(report.load))
        elif kind == "refused":
            request_id = RequestId(message.refused.request_id)
            self._give(request_id, RankRefused(request_id, error_from_failure(message.refused.failure)))
        elif kind == "prefill_done":
            done = message.prefill_done
            request_id = RequestId(done.request_id)
            self._give(
                request_id,
                PrefillEnded(request_id, done.num_blocks, done.num_pushed, done.num_cached, done.failure),
            )
        elif kind == "ended":
            raise SessionLost(f"the rank ended: {message.ended.cause}")

    def _give(self, request_id: RequestId, event: RankEvent) -> None:
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None:
            mailbox.put(event)

    def _lose(self, cause: str) -> None:
        if self._lost is None:
            self._lost = cause
            self._outbox.put_nowait(None)
        mailboxes, self._mailboxes = self._mailboxes, {}
        for request_id, mailbox in mailboxes.items():
            mailbox.put(RankLost(request_id, cause))

    def submit(self, submission: RankSubmission, mailbox: Mailbox) -> None:
        """Start to generate; all news goes to `mailbox`, RankLost at once if the session is over."""
        if not self._enter(submission.request_id, mailbox):
            return
        self._wanted.over(submission.ticket)
        self._outbox.put_nowait(
            worker_pb2.SessionRequest(
                submit=worker_pb2.Submit(
                    request_id=submission.request_id,
                    token_ids=submission.token_ids,
                    # stop strings are found where the text is
                    sampling=sampling_to_proto(replace(submission.sampling, stop=())),
                    priority=submission.priority,
                    remaining_s=self._remaining(submission.deadline),
                    cache_salt=submission.cache_salt,
                    num_delivered=submission.num_delivered,
                    ticket=submission.ticket,
                    traceparent=submission.traceparent,
                    prompt_logprobs_from=submission.prompt_logprobs_from,
                )
            )
        )

    def prefill(self, prefill: RankPrefill, mailbox: Mailbox) -> None:
        """Start to compute and push blocks; `mailbox` gets PrefillEnded, RankRefused or RankLost."""
        if not self._enter(prefill.request_id, mailbox):
            return
        self._wanted.over(prefill.ticket)
        self._outbox.put_nowait(
            worker_pb2.SessionRequest(
                prefill=worker_pb2.Prefill(
                    request_id=prefill.request_id,
                    token_ids=prefill.token_ids,
                    cache_salt=prefill.cache_salt,
                    priority=prefill.priority,
                    remaining_s=self._remaining(prefill.deadline),
                    destination=_destination(prefill.reservation),
                    ticket=prefill.ticket,
                    traceparent=prefill.traceparent,
                    prompt_logprobs=prefill.prompt_logprobs,
                    prompt_logprobs_from=prefill.prompt_logprobs_from,
                )
            )
        )

    def forget(self, request_id: RequestId) -> None:
        """Hand out no more news of a request that has ended on the rank."""
        self._mailboxes.pop(request_id, None)

    def abort(self, request_id: RequestId, index: int | None = None) -> None:
        """End a request, or one of its completions, on the rank. Legal at any time."""
        if index is None:
            self.forget(request_id)
        if self._lost is None:
            self._outbox.put_nowait(
                worker_pb2.SessionRequest(abort=worker_pb2.Abort(request_id=request_id, index=index))
            )

    async def reserve(
        self, token_ids: tuple[int, ...], *, cache_salt: str, timeout_s: float, wait_s: float
    ) -> Reservation:
        """Set blocks aside for what the prompt `token_ids` can share, kept by the rank for `timeout_s`.

        wait_s: most time for the answer. If the caller is cancelled meanwhile, a reservation that still comes is given
        back. Raises QueueFull, NotReady, DrainingError and whatever else the rank answers.
        """
        assert self._stub is not None, "the session was never open"
        request = worker_pb2.ReserveRequest(
            token_ids=token_ids, cache_salt=cache_salt, timeout_s=timeout_s, number=self._wanted.ask()
        )
        call = asyncio.create_task(self._reserve(self._stub, request, min(wait_s, self._times.unary_s)))
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(self._give_back)
            raise

    async def _reserve(
        self, stub: worker_pb2_grpc.WorkerServiceAsyncStub, request: worker_pb2.ReserveRequest, wait_s: float
    ) -> Reservation:
        ticket = ""
        try:
            self._require_not_lost()
            reply = await stub.Reserve(request, timeout=wait_s, metadata=self._metadata)
            ticket = reply.ticket
        except grpc.aio.AioRpcError as error:
            self._require_not_lost()
            raise error_from_rpc(error) from error
        except asyncio.CancelledError:
            # the end of the session cancels the calls of its channel; who waits for this one was not cancelled
            self._require_not_lost()
            raise
        finally:
            self._wanted.answered(request.number, ticket)
        return Reservation(
            ticket=ticket,
            transfer_address=reply.transfer_address,
            num_held_blocks=reply.num_held_blocks,
            num_reserved_blocks=reply.num_reserved_blocks,
        )

    async def fetch(
        self, token_ids: tuple[int, ...], into: Reservation, *, cache_salt: str, timeout_s: float, traceparent: str
    ) -> FetchEnded:
        """Have the rank push what it has cached of the blocks that the reservation is for; it computes nothing.

        A caller that is cancelled ends the transfer. Raises what the rank answers, NotReady if it is lost.
        """
        if self._stub is None or self._lost is not None:
            raise NotReady(f"rank {self.address} is lost: {self._lost}")
        request = worker_pb2.FetchRequest(
            token_ids=token_ids,
            cache_salt=cache_salt,
            destination=_destination(into),
            timeout_s=timeout_s,
            traceparent=traceparent,
        )
        try:
            reply = await self._stub.Fetch(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # as above, the end of the session cancels the call; the caller may have been cancelled, too
            if self._lost is None or (task is not None and task.cancelling()):
                raise
            raise NotReady(f"rank {self.address} is lost: {self._lost}") from None
        return FetchEnded(reply.num_blocks, reply.num_pushed, reply.failure)

    def _give_back(self, call: asyncio.Task[Reservation]) -> None:
        if not call.cancelled() and call.exception() is None:
            self.release(call.result().ticket)

    def release(self, ticket: str) -> None:
        """Give a reservation back; returns at once. Should the message be lost, the next probe tells the rank.

        Its own deadline is there as well, for when this router is lost.
        """
        self._wanted.over(ticket)
        if self._stub is not None and self._lost is None:
            task = asyncio.create_task(self._release(self._stub, ticket))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    async def _release(self, stub: worker_pb2_grpc.WorkerServiceAsyncStub, ticket: str) -> None:
        request = worker_pb2.ReleaseReservationRequest(ticket=ticket)
        if self._lost is not None:
            return
        with suppress(grpc.aio.AioRpcError):
            await stub.ReleaseReservation(request, timeout=self._times.unary_s)

    def _require_not_lost(self) -> None:
        """The channel is closed soon after the loss, and takes no more calls. Raises NotReady."""
        if self._lost is not None:
            raise NotReady(f"rank {self.address} is lost: {self._lost}")

    def _enter(self, request_id: RequestId, mailbox: Mailbox) -> bool:
        if self._lost is not None:
            mailbox.put(RankLost(request_id, self._lost))
            return False
        assert request_id not in self._mailboxes, "each attempt has an id of its own"
        self._mailboxes[request_id] = mailbox
        return True

    def _remaining(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock.now())


def _destination(reservation: Reservation) -> worker_pb2.Destination:
    return worker_pb2.Destination(
        address=reservation.transfer_address,
        ticket=reservation.ticket,
        first_block=reservation.num_held_blocks,
    )
