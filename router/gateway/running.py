"""One ask at the routers: begun at one, and gone on with at another from the tokens that came, if the first is lost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from baleen.errors import BaleenError, DeadlineExceeded, NotReady, QueueFull
from baleen.sampling import MAX_SEED
from baleen.seeds import completion_seed
from baleen.v1 import common_pb2, inference_pb2
from baleen.wire.sampling import sampling_to_proto
from router.gateway.answer import INTERRUPTED, Answer
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.line import RouterLost, Strand
from router.gateway.mixing import mixed
from router.gateway.refusal import Unkeepable
from router.gateway.routers import Link, Routers

WAIT_S = 30.0
"""How long a request waits for a router to take it, from when none answers, or its own is lost."""

MOST_LOST = 3
"""Routers that one request may lose: it could be what ends them."""


@dataclass(eq=False, slots=True)
class _Part:
    """Answers that one request at a router makes. num_lost: routers that were lost with it.

    until: when it is given up, once a router was lost, or none was there. refused: routers that are not asked for now.
    """

    indices: tuple[int, ...]
    strand: Strand | None = None
    link: Link | None = None
    num_lost: int = 0
    until: float | None = None
    refused: set[Link] = field(default_factory=set)


class Running:
    """One ask, from its start to `close`."""

    def __init__(
        self,
        routers: Routers,
        ask: Ask,
        answers: Sequence[Answer],
        *,
        request_id: str,
        tenant: str,
        traceparent: str,
        deadline_s: float,
    ) -> None:
        """answers: what takes each of them apart."""
        self._routers = routers
        self._ask = ask
        self._answers = answers
        self._request_id = request_id
        self._tenant = tenant
        self._traceparent = traceparent
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + deadline_s
        # another router must go on with the same noise
        self._seed = secrets.randbelow(MAX_SEED + 1) if ask.sampling.seed is None else ask.sampling.seed
        self._usage = TokenUsage(len(ask.prompt), 0, 0, 0)
        self._next_place = 1
        self._fingerprint = ""
        self._num_requests = 0
        self._has_moved = False
        self._is_closed = False
        whole = _Part(tuple(range(len(answers))))
        self._parts = [whole]
        if (link := routers.pick()) is not None:
            self._begin(whole, link)

    @property
    def usage(self) -> TokenUsage:
        """Tokens of all answers so far."""
        return self._usage

    async def admitted(self) -> None:
        """Wait until a router took the request. Raises what it refused it with, NotReady if none answers."""
        await self._admit(self._parts[0])

    def pieces(self) -> AsyncIterator[list[Piece]]:
        """News of the answers as they come, all that there are at a time. Raises what the router failed with."""
        return self._follow(self._parts[0])

    def close(self) -> None:
        """End it, if it has not ended: the ranks stop."""
        self._is_closed = True
        for part in self._parts:
            if part.strand is not None:
                part.strand.close()

    async def _follow(self, part: _Part) -> AsyncIterator[list[Piece]]:
        strand = await self._admit(part)
        while True:
            try:
                deltas = await strand.deltas()
            except RouterLost as error:
                if all(self._answers[index].has_ended for index in part.indices):
                    return
                self._lose(part, error)
                parts = self._rest_of(part)
                if len(parts) != 1:
                    async for news in mixed([self._follow(one) for one in parts]):
                        yield news
                    return
                [part] = parts
                strand = await self._admit(part)
                continue
            if not deltas:
                return
            pieces: list[Piece] = []
            try:
                for delta in deltas:
                    if (piece := self._piece(part, delta)) is not None:
                        pieces.append(piece)
            except BaleenError:
                if pieces:
                    yield pieces
                raise
            yield pieces

    async def _admit(self, part: _Part) -> Strand:
        """Until a router has taken this part; each other one is asked where one is lost."""
        while True:
            if part.strand is None:
                link = await self._next_router(part)
                if self._is_closed:
                    raise NotReady("the request was ended")
                self._begin(part, link)
            assert part.strand is not None
            try:
                await part.strand.admitted()
            except RouterLost as error:
                self._lose(part, error)
            except (NotReady, QueueFull):
                if part.until is None:
                    raise
                # it was somebody's already: those that come back have no ranks yet, and others much to do
                self._leave(part)
            else:
                return part.strand

    async def _next_router(self, part: _Part) -> Link:
        now = self._loop.time()
        if part.until is None:
            part.until = now + WAIT_S
        timeout_s = min(part.until, self._deadline) - now
        link = await self._routers.one(part.refused, timeout_s=timeout_s)
        if link is None:
            if self._deadline <= self._loop.time():
                raise DeadlineExceeded("the deadline passed, and no router had taken the request")
            raise NotReady(f"no router has taken the request for {WAIT_S:g} s")
        return link

    def _begin(self, part: _Part, link: Link) -> None:
        part.link = link
        part.strand = link.line.start(
            self._request(part.indices),
            tenant=self._tenant,
            traceparent=self._traceparent,
            deadline_s=self._deadline - self._loop.time(),
        )

    def _request(self, indices: Sequence[int]) -> inference_pb2.GenerateRequest:
        """For these answers, from where they are. Only all of them together, none of which has begun, or one."""
        ask = self._ask
        # one that is lost may be there, and run what it had, for a while
        name = f"{self._request_id}.{self._num_requests}" if self._num_requests else self._request_id
        self._num_requests += 1
        request = inference_pb2.GenerateRequest(
            request_id=name,
            token_ids=inference_pb2.TokenIds(ids=ask.prompt),
            sampling=sampling_to_proto(ask.sampling),
            priority=ask.priority,
            cache_salt=ask.cache_salt,
            fingerprint=self._fingerprint,
        )
        request.sampling.seed = self._seed
        if len(indices) == 1:
            [index] = indices
            delivered = self._answers[index].token_ids
            request.token_ids.ids.extend(delivered)
            request.num_delivered = len(delivered)
            request.sampling.n = 1
            request.sampling.seed = completion_seed(self._seed, index)
        return request

    def _lose(self, part: _Part, error: RouterLost) -> None:
        """Its router is gone. Raises NotReady where that has happened too often."""
        part.num_lost += 1
        if part.num_lost > MOST_LOST:
            raise NotReady(f"{part.num_lost} routers were lost with the request; the last one: {error}") from error
        self._has_moved = True
        self._routers.num_lost += 1
        self._routers.log.warning(
            "router lost, its request goes on",
            request_id=self._request_id,
            router=part.link.address if part.link is not None else "",
            tokens=self._usage.completion,
            cause=str(error),
        )
        part.until = self._loop.time() + WAIT_S
        self._leave(part)

    def _leave(self, part: _Part) -> None:
        assert part.link is not None
        part.refused.add(part.link)
        part.strand = None

    def _rest_of(self, part: _Part) -> list[_Part]:
        """What is asked for in place of a part that was lost: itself if nothing has come, else each answer alone."""
        left = [index for index in part.indices if not self._answers[index].has_ended]
        has_begun = any(self._answers[index].token_ids for index in part.indices)
        if tuple(left) == part.indices and (len(left) == 1 or not has_begun):
            return [part]
        rest = [_Part((index,), num_lost=part.num_lost, until=part.until, refused=set(part.refused)) for index in left]
        self._parts += rest
        return rest

    def _piece(self, part: _Part, delta: inference_pb2.Delta) -> Piece | None:
        if delta.HasField("prompt_logprobs"):
            news = self._news_of_prompt(delta.prompt_logprobs)
            return news and Piece(
                index=0,
                events=(),
                token_ids=(),
                logprobs=(),
                finish=None,
                usage=self._usage,
                prompt=news,
            )
        index = part.indices[delta.index]
        answer = self._answers[index]
        before = self._usage
        cached = before.cached
        if delta.HasField("usage"):
            self._fingerprint = delta.fingerprint
            if not (self._has_moved and before.completion):
                cached = max(cached, delta.usage.cached_tokens)
        num_tokens, num_reasoning = answer.count(delta.token_ids)
        self._usage = TokenUsage(
            before.prompt,
            cached,
            before.completion + num_tokens,
            before.reasoning + num_reasoning,
        )
        if delta.finish_reason == common_pb2.FINISH_REASON_DEAD_END:
            raise Unkeepable(f"the answer cannot keep to its form: {delta.detail}")
        piece = answer.take(index, delta, self._usage)
        if piece.finish == INTERRUPTED and not self._usage.completion:
            raise _interruption(delta)
        return piece

    def _news_of_prompt(self, told: common_pb2.PromptLogprobs) -> common_pb2.PromptLogprobs | None:
        """What is new in it, if anything is: a router that takes a request over begins with the prompt again."""
        num_places = len(told.logprobs)
        skip = self._next_place - told.position
        if skip >= num_places:
            return None
        self._next_place = told.position + num_places
        if skip <= 0:
            return told
        num_top = len(told.top_token_ids) // num_places
        return common_pb2.PromptLogprobs(
            position=told.position + skip,
            logprobs=told.logprobs[skip:],
            top_token_ids=told.top_token_ids[skip * num_top :],
            top_logprobs=told.top_logprobs[skip * num_top :],
        )


def _interruption(delta: inference_pb2.Delta) -> BaleenError:
    message = delta.detail or "the request was interrupted"
    if delta.finish_reason == common_pb2.FINISH_REASON_DEADLINE:
        return DeadlineExceeded(message)
    return NotReady(message)
