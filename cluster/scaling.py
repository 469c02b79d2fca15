"""How many groups a pool should have: loads and time in, a number out. Pure.

Up at once, as far as the load asks; down only to what was enough for the whole of the last quiet time, so that a load
that comes and goes does not start and end groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baleen.cluster_config import PoolConfig
from baleen.reports import Load

DEFAULT_FIRST_TOKEN_S = 2.0
"""Time that queued prompts may take where router.slo_first_token_s sets no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLoad:
    """What the ranks of one group have to do together. Tokens are of prompts, still to be computed; speed 0: unknown.

    slots: requests that may run at once. held_blocks: not free and not merely cached.
    """

    waiting: float
    running: float
    slots: float
    held_blocks: float
    num_blocks: float
    queued_tokens: float
    prefill_tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Bounds and aim of one pool. first_token_s: time in which queued prompts should be computed."""

    min_groups: int
    max_groups: int
    load: float
    quiet_s: float
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Wish:
    """How many groups the load asked for, and when."""

    at: float
    groups: int


def target_of(pool: PoolConfig, slo_first_token_s: float) -> Target:
    """The aim of a pool that scales."""
    return Target(
        min_groups=pool.min_groups,
        max_groups=pool.max_groups,
        load=pool.target_load,
        quiet_s=pool.quiet_s,
        first_token_s=slo_first_token_s or DEFAULT_FIRST_TOKEN_S,
    )


def group_load(ranks: Iterable[Load | None], *, slots: int, num_blocks: int) -> GroupLoad:
    """The sum over the ranks of a group, each with `slots` and `num_blocks`; None: a rank that made no step yet."""
    loads = list(ranks)
    made = [load for load in loads if load is not None]
    return GroupLoad(
        waiting=sum(load.num_waiting for load in made),
        running=sum(load.num_running for load in made),
        slots=slots * len(loads),
        held_blocks=sum(num_blocks - load.free_blocks for load in made),
        num_blocks=num_blocks * len(loads),
        queued_tokens=sum(load.queued_tokens for load in made),
        prefill_tokens_per_s=sum(load.prefill_tokens_per_s for load in made),
    )


def occupancy(group: GroupLoad) -> float:
    """Share of the group that its requests have: of the slots or of the blocks, whichever is scarcer."""
    return max((group.waiting + group.running) / group.slots, group.held_blocks / group.num_blocks)


def load_of(group: GroupLoad, first_token_s: float) -> float:
    """1: as much as the group can do. Above it when queued prompts take longer than `first_token_s`."""
    queued_s = group.queued_tokens / group.prefill_tokens_per_s if group.prefill_tokens_per_s else 0.0
    return max(occupancy(group), queued_s / first_token_s)


def decide(
    target: Target, groups: Sequence[GroupLoad | None], wanted: int, wishes: Sequence[Wish], now: float
) -> tuple[int, tuple[Wish, ...]]:
    """How many groups from now on, and the wishes to hand in next time.

    groups: those that run; None: no fresh report. wanted: what was decided last. wishes: empty at first.
    """
    needed = math.ceil(sum(load_of(group, target.first_token_s) for group in groups if group) / target.load - 1e-9)
    if not groups or None in groups:
        # whoever cannot be asked may be busy
        needed = max(needed, wanted)
    wish = Wish(now, min(max(needed, target.min_groups), target.max_groups))
    # what was wanted before the first look counts from then on
    earlier = wishes or (Wish(now, wanted),)
    # a wish that a later and larger one covers never decides anything
    kept = [old for old in earlier if old.at >= now - target.quiet_s and old.groups > wish.groups]
    most = max((old.groups for old in kept), default=wish.groups)
    return min(max(most, target.min_groups), target.max_groups), (*kept, wish)
