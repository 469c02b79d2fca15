"""What happened to each recent request: phases with their times, usage, outcome. Kept for `Explain`, bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from baleen.errors import UnknownName
from baleen.ids import RequestId

MOST_MILESTONES = 64
MOST_RECORDS = 4096


@dataclass(slots=True, eq=False)
class Usage:
    """Tokens of one request. Cached prompt tokens by where they came from: the decode rank's own, pushed to it.

    prefill_cached: of the pushed ones, those that the prefill rank had not to compute. counted: the decode rank has
    told what it found.
    """

    prompt: int
    cached_decode: int = 0
    cached_pushed: int = 0
    prefill_cached: int = 0
    completion: int = 0
    counted: bool = False

    @property
    def cached(self) -> int:
        """Prompt tokens that the decode rank had not to compute."""
        return self.cached_decode + self.cached_pushed


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
