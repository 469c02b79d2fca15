"""One try of a request on the ranks that were chosen for it: reserve, prefill, generate, and let go of everything."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from baleen.errors import (
    BaleenError,
    DeadlineExceeded,
    DrainingError,
    EpochEnded,
    NotReady,
    QueueFull,
)
from baleen.ids import RequestId
from baleen.reports import FinishReason, PromptReport, RankInfo, RequestOutput
from baleen.seeds import completion_seed
from router.completion import ClientCompletion, ClientPrompt, OutputGap
from router.fetches import FetchLog, FetchRoute, fetch_prefix
from router.messages import (
    Delta,
    Job,
    Mailbox,
    PrefillEnded,
    RankLost,
    RankPrefill,
    RankRefused,
    RankSubmission,
    Reservation,
)
from router.record import PromptSources, RequestRecord
from router.session import RankSession

ELSEWHERE = (QueueFull, DrainingError, NotReady, EpochEnded)
"""Refusals that say nothing about the request: another rank may take it."""

Emit = Callable[[Delta], Awaitable[None]]

MOST_PLACES = 4096
"""Places of a prompt in one delta, some 600 KB at 20 rivals: clients of gRPC take 4 MB unless told otherwise."""


class RankFailed(BaleenError):
    """A rank did not do its part; the request can go on elsewhere.

    lost: the session broke while the rank had the request. full: it has no room at the moment. kind: as metrics say it.
    """

    kind = "refused"

    def __init__(self, info: RankInfo, cause: str, *, lost: bool = False, full: bool = False) -> None:
        super().__init__(cause)
        self.info = info
        self.lost = lost
        self.full = full
        if lost or full:
            self.kind = "lost" if lost else "full"


class PrefillFailed(RankFailed):
    """The prefill rank did not do its part; the decode rank still could."""

    kind = "prefill"


class Attempt:
    """One try. However `run` ends, no rank holds anything for it afterwards, or has been told to let go."""

    def __init__(
        self,
        job: Job,
        prompt: ClientPrompt,
        completions: Sequence[ClientCompletion],
        record: RequestRecord,
        emit: Emit,
        *,
        decode: RankSession,
        prefill: RankSession | None,
        fetch: FetchRoute | None,
        fetches: FetchLog,
        reserve_s: float,
        now: Callable[[], float],
    ) -> None:
        """completions: those that have not ended. prefill None: the decode rank computes the prompt. fetch: what the
        rank that computes gets from another first.

        reserve_s: how long the decode rank keeps blocks for what the prefill rank sends.
        """
        self._job = job
        self._prompt = prompt
        self._completions = completions
        self._record = record
        self._emit = emit
        self._decode = decode
        self._prefill = prefill
        self._fetch = fetch
        self._fetches = fetches
        self._reserve_s = reserve_s
        self._now = now
        self._mailbox = Mailbox()
        # a client may use its id again, and other routers may see it too; a rank must not see one twice
        self._name = f"{job.request_id}/{secrets.token_hex(6)}"
        self._sources = PromptSources()
        self._unused: set[tuple[RankSession, str]] = set()

    async def run(self, *, may_go_on_without_prefill: bool) -> None:
        """Generate until every completion has ended.

        Raises RankFailed, and PrefillFailed unless the decode rank is to compute alone then; InvalidRequest and
        CapacityError as the rank refuses; DeadlineExceeded.
        """
        ticket = ""
        try:
            if self._prefill is not None:
                reservation = await self._reserve()
                if reservation is not None:
                    ticket = reservation.ticket
                    await self._fill(self._prefill, reservation, may_go_on_without=may_go_on_without_prefill)
            elif self._fetch is not None:
                ticket = await self._fetch_prefix(self._fetch)
            await self._generate(ticket)
            self._unused.discard((self._decode, ticket))
        finally:
            for rank, unused in self._unused:
                rank.release(unused)

    async def _reserve(self) -> Reservation | None:
        """Blocks on the decode rank for what it lacks of the prompt; None if it lacks nothing, nor is it scored."""
        self._record.enter("reserving", self._now())
        timeout_s = min(self._reserve_s, self._remaining())
        try:
            reservation = await self._decode.reserve(
                self._shared_tokens(), cache_salt=self._job.cache_salt, timeout_s=timeout_s, wait_s=timeout_s
            )
        except ELSEWHERE as error:
            raise RankFailed(_info(self._decode), str(error), full=isinstance(error, QueueFull)) from error
        except DeadlineExceeded as error:
            # the call's own, shorter limit: the rank is too slow
            raise RankFailed(_info(self._decode), f"no answer to a reservation: {error}") from error
        if reservation.num_reserved_blocks == 0 and not self._prompt.is_wanted:
            self._decode.release(reservation.ticket)
            return None
        self._unused.add((self._decode, reservation.ticket))
        return reservation

    async def _fetch_prefix(self, route: FetchRoute) -> str:
        """Have what another rank holds sent to the one that computes; the ticket for it, or an empty text."""
        fetched = await fetch_prefix(route, self._shared_tokens(), self._job, self._record, self._fetches, self._now)
        if fetched is None:
            return ""
        self._unused.add((route.destination, fetched.ticket))
        # how much of it arrived is seen later, by what the rank finds at hand
        if route.destination is self._decode:
            self._sources.decode = fetched.num_held
        self._sources.prefill = fetched.num_held
        self._sources.fetched = route.plan.num_blocks
        return fetched.ticket

    async def _fill(self, rank: RankSession, reservation: Reservation, *, may_go_on_without: bool) -> None:
        """Have the prefill rank compute and push the blocks that the decode rank lacks."""
        ticket = await self._fetch_prefix(self._fetch) if self._fetch is not None else ""
        self._record.enter("prefilling", self._now())
        request_id = RequestId(f"{self._name}.p")
        ended = False
        rank.prefill(
            RankPrefill(
                request_id=request_id,
                token_ids=self._shared_tokens(),
                deadline=self._job.deadline,
                reservation=reservation,
                priority=self._job.priority,
                cache_salt=self._job.cache_salt,
                ticket=ticket,
                traceparent=self._job.traceparent,
                prompt_logprobs=self._prompt.num_top,
                prompt_logprobs_from=self._prompt.next,
            ),
            self._mailbox,
        )
        try:
            while isinstance(event := await self._mailbox.get(), PromptReport):
                await self._take_prompt(rank, event)
            ended = True
        finally:
            if ended:
                rank.forget(request_id)
            else:
                rank.abort(request_id)
        failure, lost = "", isinstance(event, RankLost)
        if isinstance(event, PrefillEnded):
            failure = event.failure
            self._unused.discard((rank, ticket))
            self._sources.decode = reservation.num_held_blocks
            self._sources.prefill = min(self._sources.prefill, event.num_cached) if ticket else event.num_cached
            self._sources.fetched = event.num_cached
            if event.num_cached < event.num_blocks:
                self._record.usage.computed(event.num_cached)
        elif isinstance(event, RankLost):
            failure = event.cause
        elif isinstance(event, RankRefused):
            if not isinstance(event.error, ELSEWHERE):
                raise event.error
            failure = str(event.error)
        if failure:
            self._record.happened(f"prefill on {rank.address} failed: {failure}", self._now())
            if lost or not may_go_on_without:
                raise PrefillFailed(_info(rank), failure, lost=lost)

    async def _generate(self, ticket: str) -> None:
        """Submit what is left of every completion, and pass on what comes."""
        self._record.enter("decoding", self._now())
        running = self._submit(ticket)
        try:
            while running:
                event = await self._mailbox.get()
                if isinstance(event, RequestOutput):
                    await self._take(running, event)
                elif isinstance(event, PromptReport):
                    await self._take_prompt(self._decode, event)
                elif isinstance(event, RankLost):
                    raise RankFailed(_info(self._decode), event.cause, lost=True)
                elif isinstance(event, RankRefused):
                    if not isinstance(event.error, ELSEWHERE):
                        raise event.error
                    full = isinstance(event.error, QueueFull)
                    raise RankFailed(_info(self._decode), str(event.error), full=full)
        finally:
            for request_id in running:
                self._decode.abort(request_id)

    def _submit(self, ticket: str) -> dict[RequestId, list[ClientCompletion]]:
        """One submission for all completions if none has begun, else one for each, from where it is."""
        job = self._job
        running: dict[RequestId, list[ClientCompletion]] = {}
        if (
            not any(completion.token_ids for completion in self._completions)
            and len(self._completions) == job.sampling.n
        ):
            running[RequestId(f"{self._name}.d")] = list(self._completions)
        else:
            for completion in self._completions:
                running[RequestId(f"{self._name}.d{completion.index}")] = [completion]
        for request_id, group in running.items():
            sampling, delivered = job.sampling, group[0].token_ids
            if len(group) < sampling.n:
                assert sampling.seed is not None
                sampling = replace(sampling, n=1, seed=completion_seed(sampling.seed, group[0].index))
            self._decode.submit(
                RankSubmission(
                    request_id=request_id,
                    token_ids=(*job.prompt, *delivered),
                    sampling=sampling,
                    deadline=job.deadline,
                    num_delivered=len(delivered),
                    priority=job.priority,
                    cache_salt=job.cache_salt,
                    ticket=ticket,
                    traceparent=job.traceparent,
                    prompt_logprobs_from=self._prompt.next,
                ),
                self._mailbox,
            )
            # a ticket is good for one submission; the others find its blocks in the cache
            ticket = ""
        return running

    async def _take_prompt(self, rank: RankSession, report: PromptReport) -> None:
        try:
            news = self._prompt.take(report.logprobs)
        except OutputGap as error:
            raise RankFailed(_info(rank), str(error)) from error
        if news is not None:
            for start in range(news.position, news.end, MOST_PLACES):
                part = news.part(start, min(start + MOST_PLACES, news.end))
                await self._emit(Delta(index=0, tokens=(), text=None, prompt=part))

    async def _take(self, running: dict[RequestId, list[ClientCompletion]], output: RequestOutput) -> None:
        group = running.get(output.request_id)
        if group is None:
            return
        completion = group[output.index]
        if output.tokens:
            self._record.usage.count(output.num_cached_tokens, self._sources)
        # a rank that leaves ends what it has; so does one that was told to by somebody else
        moves = completion.finish is None and output.finish in (FinishReason.FAILED, FinishReason.CANCELLED)
        try:
            if output.tokens or output.finish is FinishReason.LENGTH:
                self._prompt.require_whole()
            delta = completion.take(replace(output, finish=None) if moves else output)
        except OutputGap as error:
            raise RankFailed(_info(self._decode), str(error)) from error
        if delta is not None:
            if delta.tokens:
                self._record.token(delta.index, len(delta.tokens), self._now())
            if delta.finish is FinishReason.DEADLINE:
                raise DeadlineExceeded(f"the deadline passed after {len(completion.token_ids)} tokens")
            if completion.stopped_by_text and delta.finish is not None:
                self._decode.abort(output.request_id, output.index if len(group) > 1 else None)
            if all(member.finish is not None for member in group):
                self._decode.forget(output.request_id)
                del running[output.request_id]
            if delta.tells_usage:
                model = _info(self._decode).model_fingerprint
                delta = replace(delta, cached=self._record.usage.cached, model=model)
            await self._emit(delta)
        if moves:
            raise RankFailed(_info(self._decode), output.detail or "the rank ended the request")

    def _shared_tokens(self) -> tuple[int, ...]:
        """What all completions begin with; ranks move the whole blocks before its last token."""
        if len(self._completions) == 1:
            return (*self._job.prompt, *self._completions[0].token_ids)
        return self._job.prompt

    def _remaining(self) -> float:
        return max(0.0, self._job.deadline - self._now())


def _info(session: RankSession) -> RankInfo:
    assert session.info is not None
    return session.info
