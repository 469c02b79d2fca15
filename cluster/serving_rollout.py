"""Routers and gateways become others while requests go on: new ones listen beside the old, which drain and leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from baleen.errors import BaleenError
from cluster.service import Service
from router.config import RouterProcessConfig
from router.gateway.config import GatewayProcessConfig


class Stage(Protocol):
    """What a rollout does to a cluster."""

    def deploy(self, services: Sequence[Service]) -> None:
        """Start services. Does not wait."""

    def remove(self, services: Sequence[Service]) -> None:
        """Let all replicas of these services finish and go. Does not wait."""

    def until_up(self, services: Sequence[Service]) -> None:
        """Wait until all their replicas serve. Raises BaleenError with the reason as soon as one is known not to."""

    def until_gone(self, services: Sequence[Service]) -> None:
        """Wait until nothing is left of these."""


class ServingRollout:
    """The routers' service of a cluster, and the gateways' if there are any. One change at a time.

    Those that come are told that they take over, and share the ports of those that go until these have left.
    """

    def __init__(self, services: Sequence[Service], stage: Stage, say: Callable[[str], None]) -> None:
        """services: what runs now. say: for people, of each step."""
        self._goal = {service.name: service for service in services}
        self._live = {service.name: [service] for service in services}
        self._generations = dict.fromkeys(self._goal, 1)
        self._stage = stage
        self._say = say

    @property
    def live(self) -> list[Service]:
        """All that there are now, those that leave before those that come."""
        return [service for services in self._live.values() for service in services]

    def changed(self, goal: Sequence[Service]) -> list[Service]:
        """Those of `goal` that run otherwise, or not at all."""
        return [service for service in goal if self._goal.get(service.name) != service]

    def update(self, goal: Sequence[Service]) -> None:
        """Bring them to `goal`. Raises the reason why they are as before: a new one does not come up."""
        new = {service.name: self._beside(service) for service in self.changed(goal)}
        for name, service in new.items():
            self._live.setdefault(name, []).append(service)
        if new:
            self._say(f"starting {', '.join(service.name for service in new.values())}")
            try:
                self._stage.deploy(list(new.values()))
                self._stage.until_up(list(new.values()))
            except BaleenError:
                self._remove(new)
                raise
        names = {service.name for service in goal}
        old = {
            name: services[0]
            for name, services in self._live.items()
            if name not in names or services[0] is not services[-1]
        }
        self._goal = {service.name: service for service in goal}
        self._remove(old)

    def _beside(self, wanted: Service) -> Service:
        """The service under a name that none has had, told to take over from what is there."""
        number = self._generations[wanted.name] = self._generations.get(wanted.name, 0) + 1
        if number == 1:
            return wanted
        config, *rest = wanted.arguments
        assert isinstance(config, RouterProcessConfig | GatewayProcessConfig)
        config = replace(config, takes_over=wanted.name in self._live)
        return replace(wanted, name=f"{wanted.name}@{number}", arguments=(config, *rest, number))

    def _remove(self, services: Mapping[str, Service]) -> None:
        if not services:
            return
        self._say(f"leaving: {', '.join(service.name for service in services.values())}")
        self._stage.remove(list(services.values()))
        self._stage.until_gone(list(services.values()))
        for name, service in services.items():
            self._live[name].remove(service)
            if not self._live[name]:
                del self._live[name]
