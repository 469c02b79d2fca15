"""What happened to each recent request: phases with their times, usage, outcome. Kept for `Explain`, bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from baleen.blocks import BLOCK_TOKENS
from baleen.errors import UnknownName
from baleen.ids import RequestId
from router.messages import CachedTokens
from router.meters import RequestMeters

MOST_MILESTONES = 64
MOST_RECORDS = 4096


@dataclass(slots=True, eq=False)
class PromptSources:
    """Where one try finds the blocks of a prompt: the number of leading blocks at which the part of each source ends.

    The parts follow each other: at hand on the decode rank (None: all that it finds are its own), cached on the prefill
    rank, fetched from another. What comes after them was computed.
    """

    decode: int | None = None
    prefill: int = 0
    fetched: int = 0


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
        prefill = max(decode, min(found, sources.prefill * BLOCK_TOKENS))
        fetched = max(prefill, min(found, sources.fetched * BLOCK_TOKENS))
        self.cached = CachedTokens(decode=decode, prefill=prefill - decode, fetched=fetched - prefill)


@dataclass(frozen=True, slots=True)
class FetchTold:
    """A fetch that is over. at: its end. num_wanted, num_taken: blocks. failure: empty if there was none."""

    at: float
    seconds: float
    holder: str
    destination: str
    num_wanted: int
    num_taken: int
    failure: str


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request from its arrival on. Times are seconds since then; outcome is empty while it runs.

    phases: seconds of each that is over. moves: causes for which it left a rank after its first token. code: gRPC
    status of its end. prefill_rank, decode_rank: addresses of the last ones. expected_hits: tokens that each half of
    the first choice was believed to hold. gaps_s, num_gaps: times between tokens of the same completion, and how many.
    """

    request_id: RequestId
    arrived: float
    usage: Usage
    meters: RequestMeters
    milestones: list[tuple[float, str]] = field(default_factory=list)
    first_token_s: float | None = None
    outcome: str = ""
    num_attempts: int = 0
    code: str = ""
    traceparent: str = ""
    prefill_rank: str = ""
    decode_rank: str = ""
    seconds: float = 0.0
    phase: str = "queued"
    phases: dict[str, float] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)
    predicted_first_token_s: float | None = None
    expected_hits: Mapping[str, int] = field(default_factory=dict)
    fetches: list[FetchTold] = field(default_factory=list)
    gaps_s: float = 0.0
    num_gaps: int = 0
    _phase_since: float | None = None
    _moving_since: float | None = None
    _last_token: dict[int, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """How it ended, as metrics say it: finished, cancelled, rejected or failed."""
        if self.code in ("OK", "CANCELLED"):
            return "finished" if self.code == "OK" else "cancelled"
        return "failed" if self.num_attempts else "rejected"

    def enter(self, phase: str, now: float) -> None:
        """A phase begins, and the one before ends."""
        self._leave_phase(now)
        self.phase, self._phase_since = phase, now
        self.happened(phase, now)

    def happened(self, event: str, now: float) -> None:
        """Something worth telling. Of very many, only the first are kept."""
        if len(self.milestones) < MOST_MILESTONES:
            self.milestones.append((now - self.arrived, event))

    def moved(self, cause: str, now: float) -> None:
        """A rank failed the request after its first token."""
        self.moves.append(cause)
        self._moving_since = now

    def token(self, index: int, count: int, now: float) -> None:
        """`count` tokens of completion `index` go to the client."""
        self.usage.completion += count
        last = self._last_token.get(index)
        if last is not None:
            self.meters.token_gap.observe((now - last) / count, count)
            self.gaps_s += now - last
            self.num_gaps += count
        self._last_token[index] = now
        if self._moving_since is not None:
            self.meters.migration.observe(now - self._moving_since)
            self._moving_since = None
        if self.first_token_s is None:
            self.first_token_s = now - self.arrived
            self.happened("first token", now)

    def end(self, outcome: str, code: str, now: float) -> None:
        """The request is over; only the first end counts."""
        if not self.outcome:
            self._leave_phase(now)
            self.outcome, self.code, self.seconds = outcome, code, now - self.arrived
            self.milestones.append((self.seconds, f"end: {outcome}"))
            self.meters.ended(self)

    def _leave_phase(self, now: float) -> None:
        if self._phase_since is not None:
            self.phases[self.phase] = self.phases.get(self.phase, 0.0) + now - self._phase_since
            self._phase_since = None


class Records:
    """The records of the latest requests; when full the oldest goes. meters: what they all count in."""

    def __init__(self, capacity: int = MOST_RECORDS, *, meters: RequestMeters | None = None) -> None:
        self._capacity = capacity
        self.meters = meters or RequestMeters()
        self._records: OrderedDict[RequestId, RequestRecord] = OrderedDict()

    def open(self, request_id: RequestId, num_prompt_tokens: int, now: float) -> RequestRecord:
        """The record of a request that arrives. A client that uses an id again replaces the record of its last use."""
        record = RequestRecord(request_id, now, Usage(num_prompt_tokens), self.meters)
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
