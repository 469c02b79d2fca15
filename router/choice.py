"""Choosing ranks for a request: what they hold of it, a snapshot of all, the policy, and a record of it all."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, root_hash, shareable_blocks
from baleen.errors import CapacityError, NotReady
from baleen.ids import Incarnation
from baleen.metric_table import Labels
from baleen.metrics import histogram
from router.fetches import FetchLog
from router.members import Members
from router.messages import Job
from router.policy.explain import Explainer
from router.policy.snapshot import Decision, Parameters, Policy, Query, Snapshot

BLOCKS_AT_ONCE = 256
"""Blocks that are hashed before others get a turn: some 0.4 ms."""


class Lookup(Protocol):
    """Who holds how much of a prompt, as far as is known."""

    async def prefixes(self, hashes: Sequence[BlockHash]) -> Mapping[Incarnation, int]:
        """Leading blocks of the chain that each live rank holds; empty if there is no answer in time."""
        ...


async def hash_in_turns(root: BlockHash, token_ids: Sequence[int], num_blocks: int) -> list[BlockHash]:
    """The first hashes of a chain; a long prompt's with turns for others between, since 2,048 take some 3 ms."""
    hashes: list[BlockHash] = []
    parent = root
    for start in range(0, num_blocks, BLOCKS_AT_ONCE):
        end = min(start + BLOCKS_AT_ONCE, num_blocks)
        hashes += chain_hashes(parent, token_ids[start * BLOCK_TOKENS : end * BLOCK_TOKENS])
        parent = hashes[-1]
        if end < num_blocks:
            await asyncio.sleep(0)
    return hashes


class NoIndex:
    """The index of a router that has none: nobody holds anything."""

    async def prefixes(self, hashes: Sequence[BlockHash]) -> Mapping[Incarnation, int]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class Placement:
    """Ranks for a request, which is counted there under `key`. other_prefill_ranks: those beside the chosen one.

    choice_s: time that the choice took.
    """

    decision: Decision
    key: str
    other_prefill_ranks: int
    choice_s: float = 0.0


class Chooser:
    """One policy at work. What is placed is counted at its ranks until `settle`, and recorded."""

    def __init__(
        self,
        members: Members,
        index: Lookup,
        policy: Policy,
        parameters: Parameters,
        explainer: Explainer,
        *,
        fetches: FetchLog | None = None,
        seed: int | None = None,
    ) -> None:
        self._members = members
        self._index = index
        self._policy = policy
        self._parameters = parameters
        self._explainer = explainer
        self._fetches = fetches
        self._turns = itertools.count()
        self._keys = itertools.count()
        self._random = random.Random(seed)
        self.decisions: Counter[Labels] = Counter()
        self.seconds = histogram("route_seconds")

    async def look_up(self, job: Job, token_ids: Sequence[int]) -> Mapping[Incarnation, int]:
        """Leading blocks of `token_ids` that each rank holds."""
        num_blocks = shareable_blocks(len(token_ids))
        held: dict[Incarnation, int] = {}
        for model in self._members.snapshot().models if num_blocks else ():
            root = root_hash(bytes.fromhex(model), job.cache_salt.encode())
            held.update(await self._index.prefixes(await hash_in_turns(root, token_ids, num_blocks)))
        return held

    def is_gone(self, model: str) -> bool:
        """Whether there are ranks, none of which serves `model`."""
        models = self._members.snapshot().models
        return bool(models) and model not in models

    def predict(self, job: Job, held: Mapping[Incarnation, int], tokens_before: int) -> float:
        """Seconds to the first token if `tokens_before` prompt tokens are served first. Raises as `place`."""
        query = self._query(job, job.num_tokens, held, turn=0)
        snapshot, decision = self._decide(self._members.snapshot(), query, job.model)
        if not tokens_before:
            return decision.first_token_s
        ranks = [rank for rank in snapshot.ranks if rank.role != "decode"] or list(snapshot.ranks)
        speed = sum(rank.prefill_tokens_per_s or self._parameters.default_prefill_tokens_per_s for rank in ranks)
        return decision.first_token_s + tokens_before / speed

    def place(
        self,
        job: Job,
        num_tokens: int,
        held: Mapping[Incarnation, int],
        *,
        excluded: Collection[Incarnation] = (),
        needs_room: bool = True,
        model: str = "",
    ) -> Placement | None:
        """Ranks for `num_tokens` tokens of `job`, none of them `excluded`. held: as from `look_up`.

        model: that the request began with, if it has; its tokens are no prompt for another one. None if they have no
        room now, unless that is not needed. Raises NotReady if no rank can be chosen, CapacityError if the tokens fit
        on none.
        """
        snapshot = self._members.snapshot()
        if excluded:
            snapshot = Snapshot(tuple(rank for rank in snapshot.ranks if rank.incarnation not in excluded))
        query = self._query(job, num_tokens, held, turn=next(self._turns))
        begin = time.perf_counter()
        snapshot, decision = self._decide(snapshot, query, model or job.model)
        choice_s = time.perf_counter() - begin
        self.seconds.observe(choice_s)
        if needs_room and not decision.has_room:
            return None
        self.decisions[decision.policy, "alone" if decision.prefill is None else "handed"] += 1
        self._explainer.record(snapshot, query, decision)
        placement = Placement(
            decision,
            f"{job.request_id} {next(self._keys)}",
            snapshot.num_prefill_ranks - 1,
            choice_s,
        )
        self._count(snapshot, query, placement)
        return placement

    def _decide(self, snapshot: Snapshot, query: Query, model: str) -> tuple[Snapshot, Decision]:
        """The policy's decision, and the ranks it was made among: those of one model, since no block fits another.

        model: the only one that will do, or empty. Raises as the policy.
        """
        if model and model not in snapshot.models:
            raise NotReady("no rank serves the model that the request began with")
        if len(snapshot.models) <= 1:
            return snapshot, self._policy(snapshot, query, self._parameters)
        found: list[tuple[Snapshot, Decision]] = []
        failures: list[NotReady | CapacityError] = []
        for part in [snapshot.by_model[model]] if model else snapshot.by_model.values():
            try:
                found.append((part, self._policy(part, query, self._parameters)))
            except (NotReady, CapacityError) as error:
                failures.append(error)
        if not found:
            # where ranks are still to come, the request may fit yet
            raise next((error for error in failures if isinstance(error, NotReady)), failures[0])
        return min(found, key=lambda pair: (not pair[1].has_room, pair[1].first_token_s))

    def settle(self, placement: Placement) -> None:
        """The request has ended on these ranks, or never began."""
        decision = placement.decision
        self._members.settled(decision.decode, placement.key)
        if decision.prefill is not None:
            self._members.settled(decision.prefill, placement.key)

    def _count(self, snapshot: Snapshot, query: Query, placement: Placement) -> None:
        decision = placement.decision
        decode = snapshot.rank(decision.decode)
        assert decode is not None
        fetched = decision.fetch.num_fetched * BLOCK_TOKENS if decision.fetch is not None else 0
        tokens = query.uncached(decode) - fetched
        prefill = None if decision.prefill is None else snapshot.rank(decision.prefill)
        if prefill is not None:
            tokens = query.num_prompt_tokens - query.shareable * BLOCK_TOKENS
            self._members.sent(
                prefill.incarnation,
                placement.key,
                tokens=(query.shareable - query.held(prefill)) * BLOCK_TOKENS - fetched,
                blocks=query.prefill_blocks(prefill),
            )
        self._members.sent(decode.incarnation, placement.key, tokens=tokens, blocks=query.decode_blocks(decode))

    def _query(self, job: Job, num_tokens: int, held: Mapping[Incarnation, int], *, turn: int) -> Query:
        return Query(
            request_id=job.request_id,
            num_prompt_tokens=num_tokens,
            max_tokens=job.sampling.max_tokens,
            cached_blocks=held,
            seed=self._random.getrandbits(32),
            turn=turn,
            no_fetch=self._fetches.barred if self._fetches is not None else frozenset(),
            transfer_bytes_per_s=self._fetches.bytes_per_s if self._fetches is not None else 0.0,
        )
