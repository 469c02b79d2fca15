"""Everything that Serve runs for one cluster, and the owner of it: deployed, changed while it runs, ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from baleen.cluster_config import ClusterConfig, PoolConfig
from baleen.errors import BaleenError, ConfigError
from cluster import ray_adapter, serve_adapter
from cluster.app import Site, pool_services, serving_services
from cluster.changes import model_of, require_changeable, require_same_text
from cluster.head_calls import HeadCalls
from cluster.placement import ROUTER, plan, pools_and_router
from cluster.rollout import Rollout
from cluster.service import Service, ServiceState
from cluster.serving_replica import RouterReplica
from cluster.serving_rollout import ServingRollout
from cluster.watch import PLACE_TIMEOUT_S, Watch

FREED_S = 5.0
"""Longest time for Ray to tell that something is free again."""

_LEAVE_SLACK_S = 15.0
_END_SLACK_S = 10.0
_POLL_S = 0.1


class Fleet:
    """The services of a cluster. default: the checkpoint where the configuration names none."""

    def __init__(
        self, config: ClusterConfig, site: Site, default: Path, say: Callable[[str], None], call: HeadCalls
    ) -> None:
        """call: whatever is asked of Ray."""
        self.config = config
        self.call = call
        self._site = replace(site, version=secrets.token_hex(4))
        self._default = default
        self._say = say
        model = model_of(config, default)
        self._stage = _Stage(self)
        self._pools = Rollout(pool_services(config, model, self._site), self._stage, self._tell)
        self._serving = ServingRollout(serving_services(config, model, self._site), self._stage, self._tell)
        self._listener: Callable[[str], None] = lambda text: None

    @property
    def services(self) -> list[Service]:
        """All that there are now."""
        return [service for services in self._pools.live.values() for service in services] + self._serving.live

    def require_room(self) -> None:
        """Raise ConfigError that names what is missing where; what another cluster had may soon be free."""
        known = {node.address for node in self.call(ray_adapter.nodes)}
        router_node = self._site.router_node
        if router_node and router_node not in known:
            raise ConfigError(f"router.node is {router_node!r}, must be one of Ray's: {', '.join(sorted(known))}")
        if reasons := self.unplaced(pools_and_router(self.config)):
            raise ConfigError("; ".join(reasons))

    def end_leftovers(self) -> None:
        """End what a cluster of this name has left on a Ray that goes on, should its `baleen up` have been killed.

        Raises BaleenError that names what has not gone in the time that this cluster gives its own services.
        """
        if left := self.call(serve_adapter.deployed, self.config.name):
            self._say(f"ending what a former cluster of this name has left: {', '.join(left)}")
            leave_s = max(service.leave_s for service in self.services)
            former = [Service(name=name, kind=object, arguments=(), replicas=0, leave_s=leave_s) for name in left]
            if still_there := self._end(former):
                raise BaleenError(f"what a former cluster of this name has left does not end: {', '.join(still_there)}")

    def deploy(self) -> None:
        """Start everything. Does not wait."""
        self.call(serve_adapter.deploy, self.services)

    def states(self) -> list[ServiceState]:
        """How far each service is."""
        return self.call(serve_adapter.states, self.services)

    def groups(self, states: Sequence[ServiceState]) -> dict[str, tuple[int, int]]:
        """Groups of each pool that run, and that are wanted."""
        by_name = {state.name: state for state in states}
        found = {}
        for pool, services in self._pools.live.items():
            mine = [by_name[service.name] for service in services if service.name in by_name]
            found[pool] = (sum(state.running for state in mine), sum(state.wanted for state in mine))
        return found

    def update(
        self, wanted: ClusterConfig, watch: Watch, say: Callable[[str], None], *, afresh: bool, in_place: bool
    ) -> None:
        """Bring the running cluster to another configuration. afresh: replace every group, whatever has changed.

        say: of each step, besides what is said anyway. Raises ConfigError that names what cannot change, else as
        `Rollout.update`.
        """
        require_changeable(self.config, wanted)
        require_same_text(self.config, wanted, self._default)
        site = replace(self._site, version=secrets.token_hex(4)) if afresh else self._site
        model = model_of(wanted, self._default)
        serving = serving_services(wanted, model, self._site)
        self._require_room_beside(wanted, self._serving.changed(serving))
        self._listener, self._stage.watch = say, watch
        before = self._pools.goal
        self._pools.update(pool_services(wanted, model, site), in_place=in_place)
        try:
            self._serving.update(serving)
        except BaleenError as error:
            self._tell(f"going back: {error}")
            self._pools.update(before, in_place=True)
            raise type(error)(f"{error}; all is as it was before") from error
        self.config, self._site = wanted, site

    def _require_room_beside(self, wanted: ClusterConfig, changed: Sequence[Service]) -> None:
        """Raise ConfigError if routers that take over have no place beside those that are there."""
        routers = [pool for pool in pools_and_router(wanted) if pool.name == ROUTER]
        if any(service.kind is RouterReplica for service in changed) and (reasons := self.unplaced(routers)):
            raise ConfigError(f"there is no room for new routers beside those that run: {'; '.join(reasons)}")

    def undeploy(self) -> None:
        """End everything in order."""
        if left := self._end(self.services):
            self._say(f"not gone in time, and ended by force: {', '.join(left)}")

    def _end(self, services: Sequence[Service]) -> list[str]:
        """End these, each replica in order; returns the names of those that were not gone in time."""
        left = [service.name for service in services]
        self.call(serve_adapter.remove, left)
        deadline = time.monotonic() + max((service.leave_s for service in services), default=0.0) + _END_SLACK_S
        while left and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            known = self.call(serve_adapter.deployed, self.config.name)
            left = [name for name in left if name in known]
        return left

    def _tell(self, text: str) -> None:
        self._say(text)
        self._listener(text)

    def unplaced(self, pools: Sequence[PoolConfig]) -> list[str]:
        """Why these pools have no place beside what runs; empty: they have."""
        addresses = {ROUTER: self._site.router_node} if self._site.router_node else {}
        deadline = time.monotonic() + FREED_S
        while unplaced := plan(pools, self.call(ray_adapter.nodes), addresses=addresses).unplaced:
            if time.monotonic() > deadline:
                return [f"pool {group.pool}, group {group.group}: {group.reason}" for group in unplaced]
            time.sleep(FREED_S / 10)
        return []


class _Stage:
    """A rollout's hands: Ray for what is done, the watch for what is waited for."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.watch: Watch | None = None

    def deploy(self, services: Sequence[Service]) -> None:
        self._fleet.call(serve_adapter.deploy, services)

    def remove(self, services: Sequence[Service]) -> None:
        self._fleet.call(serve_adapter.remove, [service.name for service in services])

    def until_up(self, services: Sequence[Service]) -> None:
        timeout_s = self._fleet.config.group.start_timeout_s + PLACE_TIMEOUT_S
        self._watching.until_up(timeout_s, [service.name for service in services])

    def until_left(self, services: Sequence[Service]) -> None:
        left = {service.name: service.replicas for service in services}

        def done(states: Mapping[str, ServiceState]) -> bool:
            return all(states[name].running <= count and not states[name].leaving for name, count in left.items())

        self._watching.until(done, _leave_s(services), "a group that was told to leave")

    def until_gone(self, services: Sequence[Service]) -> None:
        def done(states: Mapping[str, ServiceState]) -> bool:
            return not any(states[service.name].exists for service in services)

        self._watching.until(done, _leave_s(services), "a service that was told to leave")

    @property
    def _watching(self) -> Watch:
        assert self.watch is not None, "there is one before anything changes"
        return self.watch

    def running(self, service: Service) -> int:
        return next((state.running for state in self._fleet.call(serve_adapter.states, [service])), 0)

    def lacking(self, pools: Sequence[PoolConfig]) -> list[str]:
        return self._fleet.unplaced([replace(pool, groups=1, min_groups=1, max_groups=0) for pool in pools])


def _leave_s(services: Sequence[Service]) -> float:
    return max(service.leave_s for service in services) + _LEAVE_SLACK_S
