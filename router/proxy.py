"""One request's life: admit, choose, reserve, prefill, decode, go on elsewhere when a rank fails, end once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from baleen.clock import Clock
from baleen.errors import BaleenError, DeadlineExceeded, NotReady, PoisonRequest, QueueFull
from baleen.ids import Epoch, Incarnation
from baleen.reports import RankInfo
from baleen.telemetry import Log
from baleen.text.tokenizer import Tokenizer
from baleen.wire.errors import wire_error
from router.admission import Admission, Applicant
from router.attempt import Attempt, Emit, RankFailed
from router.choice import Chooser, Placement
from router.completion import ClientCompletion, ClientPrompt, new_completions
from router.fetches import FetchLog, FetchRoute
from router.journal import log_end
from router.messages import Job
from router.policy.snapshot import Decision
from router.quarantine import Quarantine, request_digest
from router.record import Records, RequestRecord
from router.retry import RetryBudget
from router.session import RankSession
from router.sessions import RankSessions

if TYPE_CHECKING:
    from baleen.tracing import Tracing
    from router.spans import RequestSpans

CANCEL_LEAD_S = 0.02
"""How much earlier than here the deadline may pass in the gRPC library."""

TOKENS_AT_ONCE = 1024
"""Delivered tokens whose text is made before others get a turn: a millisecond or two."""

RECHECK_S = 0.25
"""Longest time between two looks for a rank, when nothing says that one has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """reserve_s: how long, beyond the time predicted for a prefill, a decode rank keeps blocks for its next one.
    rank_wait_s: until there is any rank, or, after a failure, one with room; once a client has tokens, its deadline
    alone counts. least_fetch_s: time that a fetch of a prefix is given, unless to compute it takes longer.
    most_attempts: ranks that may fail one request, beside those that are full. poison_deaths: ranks that may die under
    a request.
    """

    reserve_s: float = 60.0
    rank_wait_s: float = 60.0
    least_fetch_s: float = 0.25
    most_attempts: int = 8
    poison_deaths: int = 2


class Proxy:
    """Carries requests between clients and ranks."""

    def __init__(
        self,
        *,
        sessions: RankSessions,
        chooser: Chooser,
        admission: Admission[Placement],
        records: Records,
        retries: RetryBudget,
        fetches: FetchLog,
        quarantine: Quarantine,
        tokenizer: Tokenizer | None,
        limits: ProxyLimits,
        clock: Clock,
        log: Log,
        tracing: Tracing | None = None,
    ) -> None:
        self._sessions = sessions
        self._chooser = chooser
        self._admission = admission
        self._records = records
        self._retries = retries
        self._fetches = fetches
        self._quarantine = quarantine
        self._tokenizer = tokenizer
        self._limits = limits
        self._clock = clock
        self._log = log
        self._tracing = tracing
        self._active: set[RequestRecord] = set()

    @property
    def num_active(self) -> int:
        """Requests that have not ended."""
        return len(self._active)

    def phases(self) -> Counter[str]:
        """Requests that have not ended, by what is done for them."""
        return Counter(record.phase for record in self._active)

    async def run(self, job: Job, on_admitted: Callable[[], Awaitable[None]], emit: Emit) -> RequestRecord:
        """Serve one request to its end: `emit` gets what is new, in order for each completion.

        Raises what the client is to be told. Cancelling it frees everything, on every rank. Nothing outlives the
        deadline.
        """
        record = self._records.open(job.request_id, len(job.prompt), self._clock.now())
        self._active.add(record)
        spans = self._begin_spans(job, record)
        if spans is not None:
            job = replace(job, traceparent=spans.traceparent)
        record.traceparent = job.traceparent
        outcome, code = "failed: INTERNAL", "INTERNAL"
        failure: BaleenError | None = None
        try:
            limit = asyncio.timeout(max(0.0, job.deadline - self._clock.now()))
            try:
                async with limit:
                    await _Life(self, job, record, emit, spans).run(on_admitted)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise DeadlineExceeded(f"the deadline passed while it was {record.phase}") from None
            outcome, code = "finished", "OK"
        except asyncio.CancelledError:
            # gRPC itself cancels what has outlived its deadline
            outcome, code = "cancelled", "CANCELLED"
            if self._clock.now() >= job.deadline - CANCEL_LEAD_S:
                outcome, code = "failed: DeadlineExceeded", "DEADLINE_EXCEEDED"
            raise
        except BaleenError as error:
            failure = error
            outcome, code = f"failed: {type(error).__name__}: {error}", wire_error(type(error)).code.name
            raise
        finally:
            self._active.discard(record)
            self._end(record, outcome, code, failure)
            if spans is not None:
                spans.end(record, "" if code == "OK" else type(failure).__name__ if failure is not None else code)
        return record

    def _begin_spans(self, job: Job, record: RequestRecord) -> RequestSpans | None:
        if self._tracing is None:
            return None
        # with the library behind it, which nobody should wait for where traces are off
        from baleen.tracing import traceparent_of
        from router.spans import RequestSpans

        span = self._tracing.begin("router.request", job.traceparent, record.arrived)
        return RequestSpans(self._tracing, span, traceparent_of(span))

    def _end(self, record: RequestRecord, outcome: str, code: str, error: BaleenError | None) -> None:
        record.end(outcome, code, self._clock.now())
        log_end(self._log, record, error)
        self._admission.capacity_changed()


class _Life:
    """The state of one request while it is served."""

    def __init__(self, proxy: Proxy, job: Job, record: RequestRecord, emit: Emit, spans: RequestSpans | None) -> None:
        self._proxy = proxy
        self._job = job
        self._record = record
        self._spans = spans
        self._emit = emit
        self._prompt = ClientPrompt(len(job.prompt), job.sampling.prompt_logprobs, is_delivered=bool(job.delivered))
        self._completions = new_completions(job.sampling, proxy._tokenizer, wants_text=job.wants_text)
        self._excluded: set[Incarnation] = set()
        self._died: dict[Incarnation, Epoch] = {}
        self._full = False
        self._failures = 0
        self._model = ""

    async def run(self, on_admitted: Callable[[], Awaitable[None]]) -> None:
        proxy, job = self._proxy, self._job
        digest = request_digest(job.prompt)
        if (left := proxy._quarantine.remaining_s(digest)) > 0:
            raise PoisonRequest(f"ranks died on this request before; it is kept out for another {left:.0f} s")
        proxy._retries.earn()
        await self._resume()
        admitted = await self._admit()
        try:
            await on_admitted()
        except BaseException:
            proxy._chooser.settle(admitted)
            raise
        placement: Placement | None = admitted
        while True:
            if placement is None:
                placement = await self._place_again()
            chosen, placement = placement, None
            try:
                if await self._attempt(chosen):
                    return
            except RankFailed as failure:
                self._note(failure, digest)
            finally:
                proxy._chooser.settle(chosen)

    async def _resume(self) -> None:
        """Take what the client has already."""
        delivered = self._job.delivered
        for start in range(0, len(delivered), TOKENS_AT_ONCE):
            self._completions[0].resume(delivered[start : start + TOKENS_AT_ONCE])
            await asyncio.sleep(0)

    async def _admit(self) -> Placement:
        """Wait in the queue for ranks with room."""
        proxy, job = self._proxy, self._job
        self._record.enter("queued", proxy._clock.now())
        held = await self._look_up((*job.prompt, *job.delivered))
        return await proxy._admission.admit(
            Applicant(
                request_id=job.request_id,
                tenant=job.tenant,
                num_tokens=job.num_tokens,
                deadline=job.deadline,
                place=lambda: proxy._chooser.place(job, job.num_tokens, held),
                undo=proxy._chooser.settle,
                predict=lambda tokens_before: proxy._chooser.predict(job, held, tokens_before),
                # whoever has tokens has no first one to wait for: it is served until its deadline
                slo_s=0.0 if job.delivered else job.first_token_within_s,
            )
        )

    async def _place_again(self) -> Placement:
        """Ranks for what is left, after a failure: no queue again, but a wait for a rank to be there."""
        proxy, job = self._proxy, self._job
        begun = proxy._clock.now()
        self._record.enter("moving", begun)
        unfinished = self._unfinished()
        token_ids = [*job.prompt, *(unfinished[0].token_ids if len(unfinished) == 1 else ())]
        held = await self._look_up(token_ids)
        while True:
            try:
                placement = proxy._chooser.place(
                    job,
                    len(token_ids),
                    held,
                    excluded=self._excluded,
                    needs_room=self._full,
                    model=self._model if self._begun else "",
                )
                if placement is not None:
                    return placement
            except NotReady as error:
                if self._tired(begun):
                    raise
                self._record.happened(f"waiting: {error}", proxy._clock.now())
            if self._full and self._tired(begun):
                raise QueueFull("no rank has room for the request", retry_after_s=1.0)
            # those that failed may be all there is
            self._excluded &= self._died.keys()
            await proxy._sessions.change(RECHECK_S)
            self._forget_the_living()

    async def _look_up(self, token_ids: Sequence[int]) -> Mapping[Incarnation, int]:
        """Who holds how much of these tokens; nobody, while what would be held gives no log-probabilities."""
        return {} if self._prompt.is_wanted else await self._proxy._chooser.look_up(self._job, token_ids)

    def _tired(self, begun: float) -> bool:
        """Whether the wait since `begun` is over.

        A client that has tokens already is served until its deadline, unless its model has been replaced by another.
        """
        if self._begun and not self._proxy._chooser.is_gone(self._model):
            return False
        return self._proxy._clock.now() - begun >= self._proxy._limits.rank_wait_s

    def _forget_the_living(self) -> None:
        """A rank whose session stands again has not died: it was the connection."""
        for incarnation in list(self._died):
            if incarnation in self._proxy._sessions.open:
                del self._died[incarnation]
                self._excluded.discard(incarnation)

    async def _attempt(self, placement: Placement) -> bool:
        """Try these ranks; False if they are gone already. Raises RankFailed."""
        proxy, decision = self._proxy, placement.decision
        decode = proxy._sessions.open.get(decision.decode)
        if decode is None:
            return False
        assert decode.info is not None
        self._model = decode.info.model_fingerprint
        prefill = None
        if decision.prefill is not None:
            prefill = proxy._sessions.open.get(decision.prefill)
        self._note_choice(decision)
        if self._spans is not None:
            self._spans.chose(decision, placement.choice_s, proxy._clock.now())
        self._record.decode_rank, self._record.prefill_rank = decode.address, prefill.address if prefill else ""
        self._record.happened(f"on {decode.address}: {decision.reason}", proxy._clock.now())
        await Attempt(
            self._job,
            self._prompt,
            self._unfinished(),
            self._record,
            self._emit,
            decode=decode,
            prefill=prefill,
            fetch=self._route(decision, prefill or decode),
            fetches=proxy._fetches,
            reserve_s=proxy._limits.reserve_s + decision.first_token_s,
            now=proxy._clock.now,
        ).run(may_go_on_without_prefill=placement.other_prefill_ranks < 1)
        return True

    def _note_choice(self, decision: Decision) -> None:
        record = self._record
        record.num_attempts += 1
        if record.num_attempts == 1:
            record.predicted_first_token_s = self._proxy._clock.now() - record.arrived + decision.first_token_s
            record.expected_hits = decision.expected_hits
        else:
            record.meters.retries[("continue" if self._begun else "restart",)] += 1

    @property
    def _begun(self) -> bool:
        """Whether the client has anything of the answer."""
        return self._prompt.has_begun or any(completion.token_ids for completion in self._completions)

    def _route(self, decision: Decision, computes: RankSession) -> FetchRoute | None:
        """The sessions for a planned fetch, if both ranks are still there."""
        plan, limits, info = decision.fetch, self._proxy._limits, computes.info
        assert info is not None
        if plan is None or info.incarnation != (decision.prefill or decision.decode):
            return None
        holder = self._proxy._sessions.open.get(plan.holder)
        if holder is None:
            return None
        return FetchRoute(plan, holder, computes, limits.least_fetch_s, limits.reserve_s)

    def _note(self, failure: RankFailed, digest: bytes) -> None:
        """Decide whether the request may go on elsewhere; raises what the client is told if not."""
        proxy, info = self._proxy, failure.info
        self._record.happened(f"failed on {info.address}: {failure}", proxy._clock.now())
        proxy._log.warning("request moves", request=self._job.request_id, rank=info.address, cause=str(failure))
        if self._begun:
            self._record.moved(failure.kind, proxy._clock.now())
        if self._spans is not None:
            self._spans.moved(failure.kind, info.address, proxy._clock.now())
        self._forget_the_living()
        self._excluded.add(info.incarnation)
        self._full = failure.full
        if failure.full:
            return
        if failure.lost:
            self._note_death(info, digest)
        self._failures += 1
        if self._failures >= proxy._limits.most_attempts:
            raise NotReady(f"{self._failures} ranks failed, the last one: {failure}") from failure
        if not self._begun and not proxy._retries.spend():
            raise NotReady(f"too many requests are being tried again; this one failed with: {failure}") from failure

    def _note_death(self, info: RankInfo, digest: bytes) -> None:
        """A rank takes its group with it: what is left of the group is avoided, and counts as one death."""
        proxy = self._proxy
        group = [session.info for session in proxy._sessions.open.values() if session.info]
        for member in (info, *(other for other in group if other.epoch == info.epoch)):
            self._died[member.incarnation] = member.epoch
            self._excluded.add(member.incarnation)
        deaths = len(set(self._died.values()))
        if deaths >= proxy._limits.poison_deaths:
            proxy._quarantine.add(digest)
            raise PoisonRequest(f"{deaths} ranks died while they worked on the request")

    def _unfinished(self) -> list[ClientCompletion]:
        return [completion for completion in self._completions if completion.finish is None]
