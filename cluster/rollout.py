"""From the pools that run to the pools that are wanted, while requests go on: new groups first, then the old leave.

A pool whose groups become others has two services side by side until the last old group has left. What is asked of Ray
and waited for is a Stage, so that the order of things can be tested without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from baleen.cluster_config import PoolConfig
from baleen.errors import BaleenError, ConfigError
from cluster.changes import alike, plan_of
from cluster.service import Service, service_name


class Stage(Protocol):
    """What a rollout does to a cluster."""

    def deploy(self, services: Sequence[Service]) -> None:
        """Start services, or give those that run another number of replicas. Does not wait."""

    def remove(self, services: Sequence[Service]) -> None:
        """Let all replicas of these services finish and go. Does not wait."""

    def until_up(self, services: Sequence[Service]) -> None:
        """Wait until all their replicas serve. Raises BaleenError with the reason as soon as one is known not to."""

    def until_left(self, services: Sequence[Service]) -> None:
        """Wait until these have no more replicas than they should."""

    def until_gone(self, services: Sequence[Service]) -> None:
        """Wait until nothing is left of these."""

    def running(self, service: Service) -> int:
        """Replicas that serve."""

    def lacking(self, pools: Sequence[PoolConfig]) -> list[str]:
        """Why one more group of each of these pools has no place beside all that runs; empty: they have."""


class Rollout:
    """The services of a cluster's pools. One change at a time."""

    def __init__(self, services: Mapping[str, Service], stage: Stage, say: Callable[[str], None]) -> None:
        """services: what runs now, by pool. say: for people, of each step."""
        self._goal = dict(services)
        self._live: dict[str, list[Service]] = {pool: [service] for pool, service in services.items()}
        self._stage = stage
        self._say = say
        self._generations: dict[str, int] = dict.fromkeys(services, 1)

    @property
    def goal(self) -> dict[str, Service]:
        """What it was last brought to, by pool."""
        return dict(self._goal)

    @property
    def live(self) -> dict[str, list[Service]]:
        """The services of each pool, those that leave first."""
        return {pool: list(services) for pool, services in self._live.items()}

    def update(self, goal: Mapping[str, Service], *, in_place: bool = False) -> None:
        """Bring all pools to `goal`, and back to what they were if a new group does not come up.

        in_place: where a new group has no room beside the old ones, an old one leaves first. Raises the reason why the
        pools are as before; BaleenError that says so if they are not.
        """
        before = dict(self._goal)
        try:
            self._bring(goal, in_place=in_place)
        except BaleenError as error:
            self._say(f"going back: {error}")
            try:
                # a group that left for want of room needs its room back
                self._bring(before, in_place=True)
            except BaleenError as second:
                raise BaleenError(
                    f"{error}; going back failed as well: {second}; apply a file again, or `baleen down`"
                ) from error
            raise type(error)(f"{error}; all pools are as they were before") from error
        self._goal = dict(goal)

    def _bring(self, goal: Mapping[str, Service], *, in_place: bool) -> None:
        self._end_what_never_came_up(goal)
        self._fix_numbers(goal)
        numbers = {pool: self._number(pool, wanted) for pool, wanted in goal.items()}
        while missing := {pool: wanted for pool, wanted in goal.items() if self._missing(pool, wanted, numbers[pool])}:
            self._round(missing, goal, numbers, in_place=in_place)
        last: list[tuple[str, Service]] = []
        for pool, services in self._live.items():
            wanted = goal.get(pool)
            last += [(pool, service) for service in services if wanted is None or not alike(service, wanted)]
        self._remove(last)
        self._settle(goal)

    def _end_what_never_came_up(self, goal: Mapping[str, Service]) -> None:
        stuck = [
            (pool, service)
            for pool, services in self._live.items()
            for service in services
            if not self._stage.running(service) and not (pool in goal and alike(service, goal[pool]))
        ]
        self._remove(stuck)

    def _fix_numbers(self, goal: Mapping[str, Service]) -> None:
        """What is to leave group by group no longer follows its load."""
        fixed = []
        for pool, wanted in goal.items():
            for service in self._old(pool, wanted):
                if service.target is not None:
                    fixed.append(replace(service, replicas=self._stage.running(service), target=None))
                    self._put(pool, fixed[-1])
        if fixed:
            self._stage.deploy(fixed)

    def _number(self, pool: str, wanted: Service) -> int:
        """How many groups to bring up: of a pool that scales, as many as its load has made of the old ones."""
        new = self._new(pool, wanted)
        if wanted.target is None:
            return wanted.replicas
        if not self._old(pool, wanted):
            return wanted.replicas if new is None else new.replicas
        now = sum(self._stage.running(service) for service in self._live.get(pool, ()))
        return min(max(now, wanted.target.min_groups), wanted.target.max_groups)

    def _missing(self, pool: str, wanted: Service, number: int) -> bool:
        new = self._new(pool, wanted)
        return new is None or new.replicas < number

    def _new(self, pool: str, wanted: Service) -> Service | None:
        return next((service for service in self._live.get(pool, ()) if alike(service, wanted)), None)

    def _old(self, pool: str, wanted: Service) -> list[Service]:
        return [service for service in self._live.get(pool, ()) if not alike(service, wanted)]

    def _round(
        self, missing: Mapping[str, Service], goal: Mapping[str, Service], numbers: Mapping[str, int], *, in_place: bool
    ) -> None:
        """One more group of each pool that lacks some, as far as there is room; then one old group fewer of each."""
        fitting: list[str] = []
        reasons: list[str] = []
        for pool, wanted in missing.items():
            pools = [plan_of(missing[name]).pool for name in (*fitting, pool)]
            lacking = self._stage.lacking(pools)
            if not lacking:
                fitting.append(pool)
            elif in_place and self._old(pool, wanted):
                self._say(f"pool {pool}: {lacking[-1]}; an old group leaves before the new one comes")
                self._shrink(pool, wanted, by=1)
                lacking = self._stage.lacking(pools)
                reasons += lacking[-1:]
                fitting += [] if lacking else [pool]
            else:
                reasons += lacking[-1:]
        if not fitting:
            gone = [(pool, service) for pool in self._live.keys() - goal.keys() for service in self._live[pool]]
            if not gone and not (in_place and any(self._old(pool, wanted) for pool, wanted in missing.items())):
                raise ConfigError(
                    f"there is no room for a new group beside those that run: {'; '.join(reasons)}; with --in-place an "
                    f"old group of the pool leaves first, and requests wait meanwhile"
                )
            self._remove(gone)
            return
        self._grow({pool: missing[pool] for pool in fitting}, numbers)
        for pool in fitting:
            rest = self._missing(pool, missing[pool], numbers[pool])
            old = sum(service.replicas for service in self._old(pool, missing[pool]))
            # the last new group takes over from all that are left
            self._shrink(pool, missing[pool], by=min(old, 1) if rest else old)

    def _grow(self, pools: Mapping[str, Service], numbers: Mapping[str, int]) -> None:
        growing = []
        for pool, wanted in pools.items():
            plan, new, beside = plan_of(wanted), self._new(pool, wanted), bool(self._old(pool, wanted))
            step = 1 if beside else numbers[pool] - (new.replicas if new else 0)
            if new is None:
                self._generations[pool] = self._generations.get(pool, 0) + 1
                name = service_name(plan.cluster, pool, self._generations[pool])
                new = replace(wanted, name=name, replicas=0)
                self._live.setdefault(pool, []).append(new)
            plan = replace(plan, spare=int(beside))
            grown = replace(new, replicas=new.replicas + step, target=None, arguments=(plan,))
            self._put(pool, grown)
            growing.append(grown)
        self._say(f"starting {_groups(growing)}")
        self._stage.deploy(growing)
        self._stage.until_up(growing)

    def _shrink(self, pool: str, wanted: Service, *, by: int) -> None:
        """Let `by` old groups of a pool finish and leave, the oldest service's first."""
        for service in self._old(pool, wanted):
            count = min(by, service.replicas)
            if count == service.replicas:
                self._remove([(pool, service)])
            elif count:
                self._say(f"{service.name}: a group finishes and leaves")
                fewer = replace(service, replicas=service.replicas - count)
                self._put(pool, fewer)
                self._stage.deploy([fewer])
                self._stage.until_left([fewer])
            by -= count

    def _remove(self, services: Sequence[tuple[str, Service]]) -> None:
        if not services:
            return
        self._say(f"leaving: {', '.join(service.name for _, service in services)}")
        self._stage.remove([service for _, service in services])
        self._stage.until_gone([service for _, service in services])
        for pool, service in services:
            self._live[pool].remove(service)
            if not self._live[pool]:
                del self._live[pool]

    def _settle(self, goal: Mapping[str, Service]) -> None:
        """The final numbers, and what makes them follow the load."""
        final, fewer = [], []
        for pool, wanted in goal.items():
            new = self._new(pool, wanted)
            assert new is not None
            settled = replace(wanted, name=new.name)
            if settled != new:
                self._put(pool, settled)
                final.append(settled)
                if wanted.target is None and settled.replicas < new.replicas:
                    self._say(f"{settled.name}: {new.replicas - settled.replicas} groups finish and leave")
                    fewer.append(settled)
        if final:
            self._stage.deploy(final)
        if fewer:
            self._stage.until_left(fewer)

    def _put(self, pool: str, service: Service) -> None:
        """Replace the service of that name."""
        self._live[pool] = [service if other.name == service.name else other for other in self._live[pool]]


def _groups(services: Sequence[Service]) -> str:
    return ", ".join(f"{service.name} (to {service.replicas})" for service in services)
