"""What happened to each recent request: phases with their times, usage, outcome. Kept for `Explain`, bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from baleen.blocks import BLOCK_TOKENS
from baleen.errors import UnknownName
from baleen.ids import RequestId
from router.messages import CachedTokens

MOST_MILESTONES = 64
MOST_RECORDS = 4096


@dataclass(slots=True, eq=False)
class PromptSources:
    """Where one try finds the blocks of a prompt: the number of leading blocks at which the part of each source ends.

    The parts follow each other: at hand on the decode rank (None: all that it finds are its own), cached on the prefill
    rank. What comes after them was computed.
    """

    decode: int | None = None
    prefill: int = 0


@dataclass(slots=True, eq=False)
class Usage:
    """Tokens of one request. cached: of its prompt, known with the first token (`counted`).

    computed_from: from this token on an earlier try has computed the prompt; None: no try has.
    """

    prompt: int
    cached: CachedTokens = field(default_factory=CachedTokens)
    completion: int = 0
    counted: bool = False
    computed_from: int | None = None

    def computed(self, num_blocks: int) -> None:
        """A rank computes the prompt for this request, all but the first `num_blocks` blocks."""
        start = num_blocks * BLOCK_TOKENS
        self.computed_from = start if self.computed_from is None else min(start, self.computed_from)

    def count(self, num_cached: int, sources: PromptSources) -> None:
        """Note what a decode rank found at hand: `num_cached` leading tokens. Only the first time counts."""
        if self.counted:
            return
        self.counted = True
        found = min(num_cached, self.prompt)
        if self.computed_from is not None:
            found = min(found, self.computed_from)
        decode = found if sources.decode is None else min(found, sources.decode * BLOCK_TOKENS)
        prefill = min(found, max(decode, sources.prefill * BLOCK_TOKENS)) - decode
        self.cached = CachedTokens(decode=decode, prefill=prefill)


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request from its arrival on. Times are seconds since then; outcome is empty while it runs."""

    request_id: RequestId
    arrived: float
    usage: Usage
    milestones: list[tuple[float, str]] = field(default_factory=list)
    first_token_s: float | None = None
    outcome: str = ""
    num_attempts: int = 0

    def enter(self, phase: str, now: float) -> None:
        """A phase begins."""
        self.happened(phase, now)

    def happened(self, event: str, now: float) -> None:
        """Something worth telling. Of very many, only the first are kept."""
        if len(self.milestones) < MOST_MILESTONES:
            self.milestones.append((now - self.arrived, event))

    def token(self, count: int, now: float) -> None:
        """`count` tokens go to the client."""
        self.usage.completion += count
        if self.first_token_s is None:
            self.first_token_s = now - self.arrived
            self.happened("first token", now)

    def end(self, outcome: str, now: float) -> None:
        """The request is over; only the first end counts."""
        if not self.outcome:
            self.outcome = outcome
            self.milestones.append((now - self.arrived, f"end: {outcome}"))


class Records:
    """The records of the latest requests; when full the oldest goes."""

    def __init__(self, capacity: int = MOST_RECORDS) -> None:
        self._capacity = capacity
        self._records: OrderedDict[RequestId, RequestRecord] = OrderedDict()

    def open(self, request_id: RequestId, num_prompt_tokens: int, now: float) -> RequestRecord:
        """The record of a request that arrives. A client that uses an id again replaces the record of its last use."""
        record = RequestRecord(request_id, now, Usage(num_prompt_tokens))
        self._records[request_id] = record
        self._records.move_to_end(request_id)
        while len(self._records) > self._capacity:
            self._records.popitem(last=False)
        return record

    def get(self, request_id: RequestId) -> RequestRecord:
        """Raises UnknownName if it is not, or no longer, known here."""
        record = self._records.get(request_id)
        if record is None:
            raise UnknownName(f"request {request_id!r} is not known to this router, or forgotten")
        return record
