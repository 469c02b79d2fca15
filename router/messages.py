"""What the router passes between its own parts about one request; `service` and `session` are its wires."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace

from baleen.ids import RequestId
from baleen.reports import FinishReason, PromptLogprobs, PromptReport, RequestOutput, SampledToken
from baleen.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request of a client, validated. prompt: token ids. `deadline` is in seconds of the router's clock.

    sampling.seed is always set: a move to another rank must continue the same noise. first_token_within_s: refuse at
    once if that cannot be met; None is the router's own limit. delivered: output that the client has already, from
    another router; then sampling.n is 1. model: fingerprint of the only one that will do, or empty.
    """

    request_id: RequestId
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deadline: float
    wants_text: bool = False
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    first_token_within_s: float | None = None
    traceparent: str = ""
    delivered: tuple[int, ...] = ()
    model: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens that a rank must know before it makes the next one."""
        return len(self.prompt) + len(self.delivered)


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens that nobody had to compute for a request, by where they were: see Usage in common.proto."""

    decode: int = 0
    prefill: int = 0
    fetched: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.decode + self.prefill + self.fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of completion `index` for the client. text is None where none was asked for.

    num_output_tokens: all of this completion so far. cached: what of the prompt was found computed already. prompt:
    news of the prompt, which all completions have; then nothing else. model: fingerprint of what gave the tokens, where
    it tells usage.
    """

    index: int
    tokens: tuple[SampledToken, ...]
    text: str | None
    finish: FinishReason | None = None
    detail: str = ""
    num_output_tokens: int = 0
    cached: CachedTokens = field(default_factory=CachedTokens)
    prompt: PromptLogprobs | None = None
    model: str = ""

    @property
    def tells_usage(self) -> bool:
        """Whether it is the first or the last of its completion: who leaves in between knows what was cached."""
        return self.finish is not None or 0 < self.num_output_tokens == len(self.tokens)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks that a decode rank has set aside. `ticket` is used once; the first `num_held_blocks` are there already."""

    ticket: str
    transfer_address: str
    num_held_blocks: int
    num_reserved_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSubmission:
    """Tokens to generate on a rank. The last `num_delivered` of `token_ids` are output that the client has already.

    request_id is of this attempt alone, so that news of an earlier one is never taken for this one's.
    prompt_logprobs_from: place of the first token whose log-probabilities the client lacks, if it asked for them.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    deadline: float
    num_delivered: int = 0
    priority: int = 0
    cache_salt: str = ""
    ticket: str = ""
    traceparent: str = ""
    prompt_logprobs_from: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPrefill:
    """Compute the whole blocks of `token_ids` and push those that the reservation lacks into it.

    ticket: of a reservation on the rank itself, with blocks that were fetched for it. prompt_logprobs: as in
    SamplingParams, from the token at place `prompt_logprobs_from` on.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    deadline: float
    reservation: Reservation
    priority: int = 0
    cache_salt: str = ""
    ticket: str = ""
    traceparent: str = ""
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 0


@dataclass(frozen=True, slots=True)
class RankRefused:
    """A rank did not take a request. `error` says why."""

    request_id: RequestId
    error: Exception


@dataclass(frozen=True, slots=True)
class RankLost:
    """The session to a rank is over, and with it this request on it."""

    request_id: RequestId
    cause: str


@dataclass(frozen=True, slots=True)
class PrefillEnded:
    """A prefill is over. Blocks: of the prompt, pushed of these, cached on the prefill rank. failure: empty if good."""

    request_id: RequestId
    num_blocks: int
    num_pushed: int
    num_cached: int
    failure: str


@dataclass(frozen=True, slots=True)
class FetchEnded:
    """A fetch is over. Blocks: of the prompt that the holder has, that the other took. failure: empty if good."""

    num_blocks: int
    num_pushed: int
    failure: str


RankEvent = RequestOutput | PromptReport | RankRefused | RankLost | PrefillEnded


class Mailbox:
    """Where the sessions put what ranks say about one request. One reader."""

    def __init__(self) -> None:
        self._events: deque[RankEvent] = deque()
        self._arrival: asyncio.Future[None] | None = None

    def put(self, event: RankEvent) -> None:
        """Add an event; called in the event loop of the reader. Tokens that wait are joined with those they follow."""
        last = self._events[-1] if self._events else None
        if isinstance(event, RequestOutput) and isinstance(last, RequestOutput) and _follows(last, event):
            self._events[-1] = replace(event, position=last.position, tokens=last.tokens + event.tokens)
        else:
            self._events.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def get(self) -> RankEvent:
        """The next event, in order of arrival."""
        while not self._events:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        return self._events.popleft()


def _follows(last: RequestOutput, event: RequestOutput) -> bool:
    return (
        last.finish is None
        and last.request_id == event.request_id
        and last.index == event.index
        and last.position + len(last.tokens) == event.position
    )
