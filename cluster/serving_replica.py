"""What Serve runs for a server of the cluster: a replica that starts, watches and ends one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from baleen.config_file import to_dict
from cluster.claim import Claim, await_free
from cluster.serving_child import ServingChild
from router.config import RouterProcessConfig
from router.gateway.config import GatewayProcessConfig

CLAIM_S = 10.0
"""Longest wait for an address: of one that is told to leave, and of one whose replica died, it is soon free."""

Config = TypeVar("Config", RouterProcessConfig, GatewayProcessConfig)


class ServingReplica(Generic[Config]):
    """A server, on the first port that no other replica has.

    Serve's own number of a replica is no use: what takes the place of a replica gets another one while that one ends.
    """

    kind: ClassVar[str]
    """Of the process: cluster.KIND_process."""

    listens: ClassVar[tuple[str, ...]]
    """Fields of the configuration that are addresses to listen on; the first one is claimed."""

    def __init__(self, config: Config, replicas: int, cluster: str, log_directory: str, generation: int = 1) -> None:
        """config: of replica 0. generation: counts what has taken the place of what was there, beside which it begins.

        Raises BaleenError if it does not come up.
        """
        self._child: ServingChild | None = None
        first = getattr(config, self.listens[0])
        addresses = [_moved(first, number) for number in range(replicas)]
        self._claim = Claim(addresses, timeout_s=CLAIM_S, generation=generation)
        number = self._claim.number
        own: dict[str, Any] = {name: _moved(getattr(config, name), number) for name in self.listens}
        if not config.takes_over:
            # the process of a replica that died stops to listen as soon as it knows
            await_free([address for address in own.values() if address], timeout_s=CLAIM_S)
        send_log = None
        if not log_directory:
            # ray is there only in the processes that Ray has started
            from cluster import ray_adapter

            send_log = ray_adapter.journal(cluster)
        self._child = ServingChild(
            self.kind,
            to_dict(replace(config, **own)),
            number=number,
            drain_timeout_s=config.drain_timeout_s,
            log_directory=log_directory,
            send_log=send_log,
        )

    def check_health(self) -> None:
        """For Serve: raises once the process has ended."""
        if self._child is not None:
            self._child.check()

    def __del__(self) -> None:
        """For Serve, which calls it when the replica is told to go."""
        child, self._child = self._child, None
        if child is not None:
            child.ask_to_leave()
            self._claim.release()
            child.leave()


class RouterReplica(ServingReplica[RouterProcessConfig]):
    """A router."""

    kind = "router"
    listens = ("listen", "listen_metrics")


class GatewayReplica(ServingReplica[GatewayProcessConfig]):
    """A gateway."""

    kind = "gateway"
    listens = ("listen",)


def _moved(address: str, number: int) -> str:
    """The address with its port `number` higher; none stays none."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}" if address else ""
