"""A rank without an engine: a real gRPC server that answers like one, and misbehaves when a test says so.

Its next token is a function of all tokens before and the seed, so the rest of a completion is the same wherever and
however often it is started again: `fake_tokens` computes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import grpc
import grpc.aio

from baleen.blocks import shareable_blocks
from baleen.errors import AlreadyRunning, BaleenError, DrainingError, InvalidRequest
from baleen.ids import new_epoch, new_incarnation
from baleen.seeds import completion_seed
from baleen.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from baleen.wire.channel import SERVER_OPTIONS
from baleen.wire.errors import abort, error_to_failure
from baleen.wire.sampling import sampling_from_proto
from tests.support.fake_scores import say_scores

VOCAB_SIZE = 288
EOS = 1


def fake_tokens(context: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """The `count` tokens that a FakeRank puts after `context`."""
    tokens = list(context)
    for _ in range(count):
        digest = blake2b(array("q", [seed, *tokens]), digest_size=4).digest()
        tokens.append(2 + int.from_bytes(digest, "little") % (VOCAB_SIZE - 2))
    return tokens[len(context) :]


@dataclass(eq=False)
class _Running:
    session: _Session
    request_id: str
    index: int
    tokens: list[int]
    num_prompt: int
    submit: worker_pb2.Submit
    max_tokens: int
    seed: int
    deadline: float | None

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt


@dataclass(eq=False)
class _Session:
    out: asyncio.Queue[worker_pb2.SessionResponse | None] = field(default_factory=asyncio.Queue)


class FakeRank(worker_pb2_grpc.WorkerServiceServicer):
    """One rank. Knobs may be turned, and records read, at any time; all in the event loop of the server.

    token_delay_s: between two steps. paused: no step is made while set. die_after: cut every connection after this
    many tokens of all requests together. refuse, refuse_reserve: answer submits and prefills, reservations, with this
    error. fail_prefill: end prefills with this failure. hold_prefill: prefills do not end while this is set.
    num_held: blocks that reservations and prefills find here. num_cached_tokens: what outputs say was found.
    num_scored: most places of a prompt that it reports for one message. free_blocks: what the load says.
    """

    def __init__(self, *, role: str = "mixed", pool: str = "pool", group: str = "group", rank: int = 0) -> None:
        self.token_delay_s = 0.0
        self.die_after: int | None = None
        self.refuse: BaleenError | None = None
        self.refuse_reserve: BaleenError | None = None
        self.fail_prefill = ""
        self.hold_prefill = False
        self.num_held = 0
        self.num_cached_tokens = 0
        self.num_scored = 100_000
        self.free_blocks = 64
        self.prefill_tokens_per_s = 10_000.0
        self.decode_tokens_per_s = 100.0
        self.draining = False

        self.submits: list[worker_pb2.Submit] = []
        self.prefills: list[worker_pb2.Prefill] = []
        self.aborts: list[worker_pb2.Abort] = []
        self.reserves: list[worker_pb2.ReserveRequest] = []
        self.released: list[str] = []
        self.num_tokens = 0

        self.info = worker_pb2.RankInfo(
            incarnation=new_incarnation(),
            epoch=new_epoch(),
            rank=rank,
            world_size=1,
            role=common_pb2.Role.Value(f"ROLE_{role.upper()}"),
            pool=pool,
            group=group,
            model_fingerprint="fa4e",
            vocab_size=VOCAB_SIZE,
            max_context=4096,
            eos_token_ids=[EOS],
            num_blocks=64,
            max_running=64,
            pid=1,
            transfer_address="127.0.0.1:1",
        )
        self._sessions: set[_Session] = set()
        self._running: list[_Running] = []
        self._held_prefills: list[tuple[_Session, worker_pb2.Prefill]] = []
        self._changed = asyncio.Event()
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._step = 0
        self._server: grpc.aio.Server | None = None
        self._engine: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FakeRank:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Listen; returns the address."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        host = address.rpartition(":")[0]
        self.info.address = f"{host}:{self._server.add_insecure_port(address)}"
        await self._server.start()
        self._engine = asyncio.create_task(self._run())
        return self.info.address

    async def kill(self) -> None:
        """Go away without a word, as a killed process does."""
        if self._engine is not None:
            self._engine.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._engine
        if self._server is not None:
            await self._server.stop(None)
        self._engine = self._server = None

    def end(self, cause: str) -> None:
        """Say goodbye on every session: the epoch is over."""
        for session in self._sessions:
            session.out.put_nowait(worker_pb2.SessionResponse(ended=worker_pb2.Ended(cause=cause)))
            session.out.put_nowait(None)

    def pause(self) -> None:
        """Make no token until `resume`."""
        self._unpaused.clear()

    def resume(self) -> None:
        """Go on."""
        self._unpaused.set()
        self.release_prefills()

    def release_prefills(self) -> None:
        """End the prefills that were held."""
        self.hold_prefill = False
        held, self._held_prefills = self._held_prefills, []
        for session, prefill in held:
            self._end_prefill(session, prefill)

    @property
    def num_running(self) -> int:
        """Completions that have not ended."""
        return len(self._running)

    @property
    def num_sessions(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    async def Session(
        self, requests: AsyncIterator[worker_pb2.SessionRequest], context: Any
    ) -> AsyncIterator[worker_pb2.SessionResponse]:
        session = _Session()
        self._sessions.add(session)
        reading = asyncio.create_task(self._read(session, requests))
        try:
            yield worker_pb2.SessionResponse(opened=worker_pb2.Opened(info=self.info))
            yield worker_pb2.SessionResponse(step_report=worker_pb2.StepReport(step=self._step, load=self._load()))
            while (response := await session.out.get()) is not None:
                yield response
        finally:
            reading.cancel()
            self._sessions.discard(session)
            self._running = [running for running in self._running if running.session is not session]

    async def Reserve(self, request: worker_pb2.ReserveRequest, context: Any) -> worker_pb2.ReserveResponse:
        self.reserves.append(request)
        error = self.refuse_reserve or (DrainingError("the rank drains") if self.draining else None)
        if error is not None:
            await abort(context, error)
        num_blocks = shareable_blocks(len(request.token_ids))
        held = min(self.num_held, num_blocks)
        return worker_pb2.ReserveResponse(
            ticket=f"ticket-{len(self.reserves)}",
            transfer_address=self.info.transfer_address,
            num_held_blocks=held,
            num_reserved_blocks=num_blocks - held,
            expires_in_s=request.timeout_s,
        )

    async def ReleaseReservation(
        self, request: worker_pb2.ReleaseReservationRequest, context: Any
    ) -> worker_pb2.ReleaseReservationResponse:
        self.released.append(request.ticket)
        return worker_pb2.ReleaseReservationResponse()

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        self.draining = True
        self._report({})
        return worker_pb2.DrainResponse(num_requests=len({running.request_id for running in self._running}))

    async def GetInfo(self, request: worker_pb2.GetInfoRequest, context: Any) -> worker_pb2.GetInfoResponse:
        return worker_pb2.GetInfoResponse(info=self.info)

    async def _read(self, session: _Session, requests: AsyncIterator[worker_pb2.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "submit":
                    self._submit(session, request.submit)
                case "prefill":
                    self._prefill(session, request.prefill)
                case "abort":
                    self._abort(request.abort)
                case "health_query":
                    report = worker_pb2.HealthReport(rank=self.info.rank, step=self._step, phase="idle")
                    session.out.put_nowait(worker_pb2.SessionResponse(health_report=report))
                case _:
                    self._refuse(session, "", InvalidRequest("the message is empty", field="message"))
        session.out.put_nowait(None)

    def _submit(self, session: _Session, submit: worker_pb2.Submit) -> None:
        self.submits.append(submit)
        try:
            sampling = sampling_from_proto(submit.sampling)
            self._require_room(submit.request_id)
            wrong = [token for token in submit.token_ids if token >= VOCAB_SIZE]
            if wrong or not submit.token_ids:
                raise InvalidRequest(
                    f"prompt holds token {wrong[:1]}, allowed are 0 to {VOCAB_SIZE - 1}", field="prompt"
                )
        except BaleenError as error:
            self._refuse(session, submit.request_id, error)
            return
        say_scores(session.out, submit, most=self.num_scored)
        now = asyncio.get_running_loop().time()
        for index in range(sampling.n):
            self._running.append(
                _Running(
                    session=session,
                    request_id=submit.request_id,
                    index=index,
                    tokens=list(submit.token_ids),
                    num_prompt=len(submit.token_ids) - submit.num_delivered,
                    submit=submit,
                    max_tokens=sampling.max_tokens,
                    seed=completion_seed(sampling.seed or 0, index),
                    deadline=now + submit.remaining_s if submit.HasField("remaining_s") else None,
                )
            )
        self._changed.set()

    def _prefill(self, session: _Session, prefill: worker_pb2.Prefill) -> None:
        self.prefills.append(prefill)
        try:
            self._require_room(prefill.request_id)
        except BaleenError as error:
            self._refuse(session, prefill.request_id, error)
            return
        if self.hold_prefill:
            self._held_prefills.append((session, prefill))
        else:
            self._end_prefill(session, prefill)

    def _end_prefill(self, session: _Session, prefill: worker_pb2.Prefill) -> None:
        num_blocks = shareable_blocks(len(prefill.token_ids))
        say_scores(session.out, prefill, most=self.num_scored)
        wanted = num_blocks - prefill.destination.first_block if prefill.HasField("destination") else 0
        done = worker_pb2.PrefillDone(
            request_id=prefill.request_id,
            num_blocks=num_blocks,
            num_pushed=0 if self.fail_prefill else wanted,
            num_cached=min(self.num_held, num_blocks),
            failure=self.fail_prefill,
        )
        session.out.put_nowait(worker_pb2.SessionResponse(prefill_done=done))

    def _abort(self, wanted: worker_pb2.Abort) -> None:
        self.aborts.append(wanted)
        for session, prefill in [held for held in self._held_prefills if held[1].request_id == wanted.request_id]:
            self._held_prefills.remove((session, prefill))
            done = worker_pb2.PrefillDone(request_id=prefill.request_id, failure="cancelled")
            session.out.put_nowait(worker_pb2.SessionResponse(prefill_done=done))
        chosen = [
            running
            for running in self._running
            if running.request_id == wanted.request_id
            and (not wanted.HasField("index") or wanted.index == running.index)
        ]
        for running in chosen:
            self._running.remove(running)
            output = self._output(running, [], common_pb2.FINISH_REASON_CANCELLED)
            self._report({running.session: [output]})

    def _require_room(self, request_id: str) -> None:
        if self.draining:
            raise DrainingError(f"rank {self.info.rank} takes no new requests")
        if self.refuse is not None:
            raise self.refuse
        if not request_id:
            raise InvalidRequest("request_id is '', must not be empty", field="request_id")
        if any(running.request_id == request_id for running in self._running):
            raise AlreadyRunning(f"request_id is {request_id!r}, which is running already")

    def _refuse(self, session: _Session, request_id: str, error: BaleenError) -> None:
        refused = worker_pb2.Refused(request_id=request_id, failure=error_to_failure(error))
        session.out.put_nowait(worker_pb2.SessionResponse(refused=refused))

    async def _run(self) -> None:
        while True:
            await self._unpaused.wait()
            if not self._running:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._make_step()
            if self.die_after is not None and self.num_tokens >= self.die_after and self._server is not None:
                # what was said before has to leave first
                await asyncio.sleep(0.05)
                server, self._server = self._server, None
                await server.stop(None)
                return
            await asyncio.sleep(self.token_delay_s)

    def _make_step(self) -> None:
        news: dict[_Session, list[worker_pb2.RequestOutput]] = {}
        now = asyncio.get_running_loop().time()
        for running in list(self._running):
            if self.die_after is not None and self.num_tokens >= self.die_after:
                break
            new: list[int] = []
            finish = common_pb2.FINISH_REASON_UNSPECIFIED
            if running.deadline is not None and now >= running.deadline:
                finish = common_pb2.FINISH_REASON_DEADLINE
            else:
                new = fake_tokens(running.tokens, 1, running.seed)
                self.num_tokens += 1
                if running.num_output + 1 >= running.max_tokens:
                    finish = common_pb2.FINISH_REASON_LENGTH
            news.setdefault(running.session, []).append(self._output(running, new, finish))
            running.tokens += new
            if finish:
                self._running.remove(running)
        self._step += 1
        self._report(news)

    def _output(
        self, running: _Running, new: list[int], finish: common_pb2.FinishReason.ValueType
    ) -> worker_pb2.RequestOutput:
        logprobs = []
        if running.submit.sampling.HasField("logprobs"):
            top = [common_pb2.TokenLogprob(token_id=t, logprob=-0.5) for t in range(running.submit.sampling.logprobs)]
            logprobs = [common_pb2.PositionLogprobs(logprob=-0.5, top=top) for _ in new]
        return worker_pb2.RequestOutput(
            request_id=running.request_id,
            index=running.index,
            position=running.num_output,
            token_ids=new,
            logprobs=logprobs,
            finish_reason=finish,
            num_prompt_tokens=running.num_prompt,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _report(self, news: dict[_Session, list[worker_pb2.RequestOutput]]) -> None:
        load = self._load()
        for session in self._sessions:
            report = worker_pb2.StepReport(step=self._step, outputs=news.get(session, ()), load=load)
            session.out.put_nowait(worker_pb2.SessionResponse(step_report=report))

    def _load(self) -> worker_pb2.Load:
        return worker_pb2.Load(
            free_blocks=self.free_blocks,
            num_running=len(self._running),
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            decode_tokens_per_s=self.decode_tokens_per_s,
            draining=self.draining,
        )
