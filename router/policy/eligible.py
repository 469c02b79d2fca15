"""Who may serve a request at all: one answer for every policy."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from statistics import median

from baleen.blocks import BLOCK_TOKENS, blocks_for
from baleen.errors import CapacityError, NotReady
from router.policy.snapshot import Parameters, Query, RankView, Snapshot


@dataclass(frozen=True, slots=True)
class Eligible:
    """Ranks for each half: where some have room, those alone. `prefill` is empty if there is no such pool."""

    prefill: tuple[RankView, ...]
    decode: tuple[RankView, ...]


def eligible(snapshot: Snapshot, query: Query) -> Eligible:
    """The ranks that a policy chooses from: none that drains or is too small, and none that is full if another is not.

    Raises NotReady if no rank can decode now, CapacityError if the prompt is too long for every one that can.
    """
    decode = [rank for rank in snapshot.ranks if rank.role != "prefill" and not rank.draining]
    if not decode:
        draining = sum(rank.role != "prefill" for rank in snapshot.ranks)
        raise NotReady(
            f"no rank is there to decode; there are {len(snapshot.ranks) - draining} that only prefill "
            f"and {draining} that drain"
        )
    num_blocks = blocks_for(query.num_prompt_tokens + 1)
    fitting = [rank for rank in decode if num_blocks <= rank.total_blocks]
    if not fitting:
        most = max(rank.total_blocks for rank in decode)
        raise CapacityError(
            f"the prompt has {query.num_prompt_tokens} tokens, the largest rank holds {most * BLOCK_TOKENS}"
        )
    prefill = [
        rank
        for rank in snapshot.ranks
        if rank.role == "prefill" and not rank.draining and query.shareable <= rank.total_blocks
    ]
    return Eligible(
        tuple([rank for rank in prefill if can_prefill(rank, query)] or prefill),
        tuple([rank for rank in fitting if can_decode(rank, query)] or fitting),
    )


def can_prefill(rank: RankView, query: Query) -> bool:
    """Whether the rank has blocks for the prompt now, and need not wait for a place among the running."""
    return query.prefill_blocks(rank) <= rank.room and rank.num_requests < rank.max_running


def can_decode(rank: RankView, query: Query) -> bool:
    """Whether the rank has blocks for the prompt and its first token, and a place among the running."""
    return query.decode_blocks(rank) <= rank.room and rank.num_requests < rank.max_running


def must_compute_alone(rank: RankView, query: Query, ranks: Eligible) -> bool:
    """Whether nobody computes the prompt for this decode rank, or nothing of it can be handed over."""
    return rank.role == "mixed" or not ranks.prefill or query.held(rank) == query.shareable


def may_compute_alone(rank: RankView, query: Query, ranks: Eligible, parameters: Parameters) -> bool:
    """Whether a decode rank may compute what it lacks of the prompt: it must, or it is but a short tail."""
    return must_compute_alone(rank, query, ranks) or query.uncached(rank) <= parameters.short_tail_tokens


class Speeds:
    """Speeds to count with: a rank's own, else the median of its pool, else the default. In tokens per second."""

    def __init__(self, snapshot: Snapshot, parameters: Parameters) -> None:
        self._prefill = _medians(snapshot, "prefill_tokens_per_s")
        self._decode = _medians(snapshot, "decode_tokens_per_s")
        self._parameters = parameters

    def prefill(self, rank: RankView) -> float:
        """Prompt tokens that the rank computes in a second."""
        known = rank.prefill_tokens_per_s or self._prefill.get(rank.pool)
        return known or self._parameters.default_prefill_tokens_per_s

    def decode(self, rank: RankView) -> float:
        """Output tokens that the rank makes in a second, over all its requests."""
        known = rank.decode_tokens_per_s or self._decode.get(rank.pool)
        return known or self._parameters.default_decode_tokens_per_s


def _medians(snapshot: Snapshot, name: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for rank in snapshot.ranks:
        speed: float = getattr(rank, name)
        if speed > 0:
            found.setdefault(rank.pool, []).append(speed)
    return {pool: median(speeds) for pool, speeds in found.items()}


def chance(query: Query, rank: RankView) -> bytes:
    """A rank's place in an order that the seed alone decides: the same in whatever company (rendezvous hashing)."""
    return blake2b(f"{query.seed} {rank.incarnation}".encode(), digest_size=8).digest()
