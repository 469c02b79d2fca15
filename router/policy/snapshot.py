"""What a policy is given and what it answers: frozen values, the same for every policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from baleen.blocks import BLOCK_TOKENS, blocks_for, shareable_blocks
from baleen.config import Role
from baleen.ids import Incarnation
from router.policy.columns import Columns, columns_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """One rank as a router sees it: its last report, and what this router sent it since.

    model: fingerprint of its weights and record format.
    queued_tokens: prompt tokens still to compute. running_tokens: in use by running requests. Speeds are in tokens per
    second, 0 if not measured. free_blocks counts cached blocks that would make room.
    """

    incarnation: Incarnation
    pool: str
    group: str
    role: Role
    address: str
    total_blocks: int
    max_running: int
    free_blocks: int
    num_waiting: int = 0
    num_running: int = 0
    queued_tokens: int = 0
    running_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    draining: bool = False
    sent_requests: int = 0
    sent_tokens: int = 0
    sent_blocks: int = 0
    model: str = ""

    @property
    def num_requests(self) -> int:
        """Requests that the rank has, or is about to have."""
        return self.num_running + self.num_waiting + self.sent_requests

    @property
    def tokens_ahead(self) -> int:
        """Prompt tokens that a new request finds before it."""
        return self.queued_tokens + self.sent_tokens

    @property
    def room(self) -> int:
        """Blocks that a new request can get now."""
        return self.free_blocks - self.sent_blocks


@dataclass(frozen=True)
class Snapshot:
    """All ranks that can be reached, at one moment."""

    ranks: tuple[RankView, ...]

    @cached_property
    def columns(self) -> Columns:
        """The ranks as arrays."""
        return columns_of(self.ranks)

    @cached_property
    def models(self) -> tuple[str, ...]:
        """What its ranks serve: one model, but for the time in which a cluster's weights are replaced."""
        return tuple(sorted({rank.model for rank in self.ranks}))

    @cached_property
    def by_model(self) -> Mapping[str, Snapshot]:
        """The ranks of each model, between which nothing can be moved."""
        return {model: Snapshot(tuple(rank for rank in self.ranks if rank.model == model)) for model in self.models}

    def rank(self, incarnation: Incarnation) -> RankView | None:
        """One rank; None if it is not there."""
        position = self.columns.positions.get(incarnation)
        return None if position is None else self.ranks[position]

    @property
    def num_prefill_ranks(self) -> int:
        """Ranks of prefill pools that take requests."""
        return int((self.columns.is_prefill & ~self.columns.draining).sum())

    def replaced(self, changes: Mapping[int, RankView]) -> Snapshot:
        """The same ranks, those at these positions with new figures. Costs little beside a snapshot made anew."""
        ranks = list(self.ranks)
        for position, rank in changes.items():
            ranks[position] = rank
        later = Snapshot(tuple(ranks))
        if "columns" in self.__dict__:
            later.__dict__["columns"] = self.columns.replaced(changes)
        if "models" in self.__dict__:
            later.__dict__["models"] = self.models
        return later


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One request as policies see it.

    cached_blocks: leading blocks of the prompt that each rank holds, as far as the index knows. seed: chooses among
    near ties. turn: counts the requests of this router, for `round_robin`. no_fetch: ranks that nothing is to be
    fetched from. transfer_bytes_per_s: of fetches, as measured; 0: not yet.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    cached_blocks: Mapping[Incarnation, int] = field(default_factory=dict)
    seed: int = 0
    turn: int = 0
    no_fetch: frozenset[Incarnation] = frozenset()
    transfer_bytes_per_s: float = 0.0

    @property
    def shareable(self) -> int:
        """Whole blocks of the prompt that can be cached or moved."""
        return shareable_blocks(self.num_prompt_tokens)

    def held(self, rank: RankView) -> int:
        """Blocks that the rank need not compute."""
        return max(0, min(self.cached_blocks.get(rank.incarnation, 0), self.shareable))

    def uncached(self, rank: RankView) -> int:
        """Prompt tokens that the rank does not hold."""
        return self.num_prompt_tokens - self.held(rank) * BLOCK_TOKENS

    def prefill_blocks(self, rank: RankView) -> int:
        """Blocks that the prompt needs beyond those held, on a rank that only computes its whole blocks."""
        return self.shareable - self.held(rank)

    def decode_blocks(self, rank: RankView) -> int:
        """Blocks that the prompt and a first token need beyond those held."""
        return blocks_for(self.num_prompt_tokens + 1) - self.held(rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the cost counts with.

    short_tail_tokens: with no more than these left to compute, the decode rank may do it without the prefill pool.
    near_tie: ranks whose cost is within this share of the best are equal, and chance decides; so are differences below
    near_tie_s. pressure_s: weight of k/(1-k), k the share of blocks in use. credit_half_life_s: a queue of this length
    halves the credit for a cached prefix. horizon_tokens: output tokens whose time is counted. handoff_s: what a move
    costs apart from its bytes. block_bytes and transfer_bytes_per_s: size and speed of a transfer. fetch: whether a
    rank may get a longer prefix from another before it computes the rest. The default speeds are for ranks of which
    nothing is measured, nor of any other rank of their pool.
    """

    short_tail_tokens: int = 256
    near_tie: float = 0.05
    near_tie_s: float = 0.001
    pressure_s: float = 0.05
    credit_half_life_s: float = 2.0
    horizon_tokens: int = 32
    handoff_s: float = 0.01
    block_bytes: int = 3_100_000
    transfer_bytes_per_s: float = 1e9
    fetch: bool = True
    default_prefill_tokens_per_s: float = 1000.0
    default_decode_tokens_per_s: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The parts of a rank's cost, in seconds; `credit_s` and `fetch_s`, what is saved by a fetch, are at most 0."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    credit_s: float = 0.0
    fetch_s: float = 0.0
    transfer_s: float = 0.0
    decode_s: float = 0.0
    pressure_s: float = 0.0

    @property
    def total_s(self) -> float:
        """What ranks are compared by."""
        spent_s = self.queue_s + self.compute_s + self.transfer_s + self.decode_s + self.pressure_s
        return spent_s + self.credit_s + self.fetch_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One rank that was looked at for one half of the request.

    alone: as a decode rank it would compute the prompt itself. first_token_s: the time that its half takes until the
    first token, if all goes as measured; unlike the cost, which prefers and avoids.
    """

    incarnation: Incarnation
    half: Role
    cached_blocks: int
    has_room: bool
    alone: bool
    terms: Terms
    first_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """What the rank that computes the prompt is to get from another first.

    num_blocks: leading blocks of the prompt that the holder has. num_fetched: of these, those that the other lacks.
    gain_s: time that it saves. compute_s: time in which they could be computed instead.
    """

    holder: Incarnation
    num_blocks: int
    num_fetched: int
    gain_s: float
    compute_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Who serves a request. prefill is None where the decode rank computes all that it lacks.

    candidates: the chosen ones. has_room: both halves have it now. first_token_s: predicted time to the first token.
    fetch: for the prefill rank, or without one for the decode rank; None: nothing.
    """

    request_id: str
    policy: str
    prefill: Incarnation | None
    decode: Incarnation
    has_room: bool
    first_token_s: float
    candidates: tuple[Candidate, ...]
    reason: str
    fetch: FetchPlan | None = None

    @property
    def expected_hits(self) -> dict[str, int]:
        """Prompt tokens that the chosen ranks are believed to hold: on `decode`, and what `prefill` adds to it."""
        held = {candidate.half == "prefill": candidate.cached_blocks for candidate in self.candidates}
        found = {"decode": held[False] * BLOCK_TOKENS}
        if True in held:
            found["prefill"] = max(0, held[True] - held[False]) * BLOCK_TOKENS
        return found


class Policy(Protocol):
    """A way to choose. Raises NotReady if no rank can be chosen, CapacityError if the prompt fits none."""

    def __call__(self, snapshot: Snapshot, query: Query, parameters: Parameters) -> Decision:
        """The decision for one request."""
        ...
