"""Configuration of a whole cluster: pools of groups, the router, Redis and Ray. Frozen and validated.

The defaults are a cluster for one machine: one prefill and one decode group of two ranks, and all that they need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from baleen.config import CacheConfig, EngineConfig, ModelConfig, Role, TraceConfig, TransferConfig
from baleen.errors import ConfigError
from baleen.gateway_config import GatewayConfig
from baleen.redis_config import RedisConfig
from baleen.tls_config import TlsConfig

Strategy = Literal["pack", "strict_pack", "spread", "strict_spread"]
Auth = Literal["token", "disabled"]
PolicyName = Literal["cost", "least_loaded", "round_robin"]

_EVERYWHERE = ("0.0.0.0", "[::]")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Groups of one role and one size.

    groups: how many. Or max_groups: the pool has from min_groups to max_groups of them, so that each has at most
    target_load of what it can do (1: all its slots or blocks taken, or queued prompts that take all of
    router.slo_first_token_s, or 2 s where that is 0); more at once, fewer after quiet_s seconds. ep: ranks of each,
    which share the routed experts. Each rank is given cpus_per_rank (a share of the processors: 0.25 lets four ranks
    share one), gpus_per_rank and memory_gib_per_rank (0: not counted by Ray).
    strategy: how the ranks of a group lie on nodes; the strict ones fail rather than bend.
    """

    name: str
    role: Role
    groups: int = 1
    min_groups: int = 1
    max_groups: int = 0
    target_load: float = 0.7
    quiet_s: float = 60.0
    ep: int = 1
    cpus_per_rank: float = 0.25
    gpus_per_rank: int = 0
    memory_gib_per_rank: float = 0.0
    strategy: Strategy = "pack"
    cache: CacheConfig = field(default_factory=lambda: CacheConfig(num_blocks=512))
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError on a name that cannot stand in keys and addresses, or a size below its least."""
        _require(
            _NAME.fullmatch(self.name) is not None,
            f"the name of a pool is {self.name!r}, must be lower-case letters, digits and hyphens, at most 32, "
            f"a letter first",
        )
        _require(self.groups >= 1, f"pool {self.name}: groups is {self.groups}, must be at least 1")
        _require(self.min_groups >= 1, f"pool {self.name}: min_groups is {self.min_groups}, must be at least 1")
        if self.scales:
            _require(
                self.max_groups >= self.min_groups,
                f"pool {self.name}: max_groups is {self.max_groups}, must be at least min_groups ({self.min_groups})",
            )
            _require(self.groups == 1, f"pool {self.name}: groups is {self.groups}, must be left out with max_groups")
        else:
            _require(
                self.max_groups == 0 and self.min_groups == 1,
                f"pool {self.name}: min_groups is {self.min_groups} and max_groups {self.max_groups}, must be given "
                f"together; without them the pool has `groups`",
            )
        _require(
            0 < self.target_load <= 1,
            f"pool {self.name}: target_load is {self.target_load:g}, must be above 0, up to 1",
        )
        _require(self.quiet_s > 0, f"pool {self.name}: quiet_s is {self.quiet_s:g}, must be above 0")
        _require(self.ep >= 1, f"pool {self.name}: ep is {self.ep}, must be at least 1")
        _require(self.cpus_per_rank > 0, f"pool {self.name}: cpus_per_rank is {self.cpus_per_rank:g}, must be above 0")
        for name in ("gpus_per_rank", "memory_gib_per_rank"):
            value = getattr(self, name)
            _require(value >= 0, f"pool {self.name}: {name} is {value:g}, must be at least 0")

    @property
    def scales(self) -> bool:
        """Whether the number of groups follows the load."""
        return self.max_groups > 0

    @property
    def least_groups(self) -> int:
        """How many groups there always are."""
        return self.min_groups if self.scales else self.groups

    @property
    def most_groups(self) -> int:
        """How many groups there may be."""
        return self.max_groups if self.scales else self.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """The public gRPC service. host and port: where it listens; replica i listens on port + i.

    node: address of the Ray node that all replicas run on, so that clients find them where they were; empty: that of
    `baleen up`.

    metrics_port: of GET /metrics, on the same host and counted in the same way; 0 serves none.
    policy: how ranks are chosen. slo_first_token_s: a request that cannot have its first token in this time is refused
    at once; 0 never refuses for it. max_queued: requests that may wait in one replica.
    """

    host: str = "127.0.0.1"
    node: str = ""
    port: int = 9000
    metrics_port: int = 9464
    replicas: int = 1
    cpus: float = 0.1
    policy: PolicyName = "cost"
    slo_first_token_s: float = 0.0
    max_queued: int = 1024

    def __post_init__(self) -> None:
        """Raise ConfigError on a port or number out of range."""
        _require(bool(self.host), "router.host is empty, must be an address or a name")
        _require(
            self.port >= 1 and self.port + self.replicas <= 65536,
            f"router.port is {self.port}, must be from 1 to {65536 - self.replicas}",
        )
        _require(
            self.metrics_port == 0 or 1 <= self.metrics_port <= 65536 - self.replicas,
            f"router.metrics_port is {self.metrics_port}, must be from 1 to {65536 - self.replicas}, or 0",
        )
        _require(
            not self.metrics_port or abs(self.metrics_port - self.port) >= self.replicas,
            f"router.metrics_port is {self.metrics_port} and router.port is {self.port}: with {self.replicas} replicas "
            f"their ports overlap",
        )
        _require(self.replicas >= 1, f"router.replicas is {self.replicas}, must be at least 1")
        _require(self.cpus >= 0, f"router.cpus is {self.cpus:g}, must be at least 0")
        _require(
            self.slo_first_token_s >= 0, f"router.slo_first_token_s is {self.slo_first_token_s:g}, must be at least 0"
        )
        _require(self.max_queued >= 1, f"router.max_queued is {self.max_queued}, must be at least 1")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where each replica is found."""
        host = self.node if self.node and self.host in _EVERYWHERE else self.host
        return tuple(f"{host}:{self.port + number}" for number in range(self.replicas))


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """The Ray cluster to run on. address empty: one that is started here, for this cluster only.

    auth: `token` takes the token from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (one that is started here gets a fresh
    one), `disabled` lets everyone on the network in.
    """

    address: str = ""
    auth: Auth = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """What can be seen from outside. rank_metrics: whether each rank answers GET /metrics, on a free port."""

    rank_metrics: bool = True
    traces: TraceConfig = field(default_factory=TraceConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """How long the ranks of a group may take, in seconds.

    start_timeout_s: to join, load and warm up. heartbeat_timeout_s: silence after which a rank is lost.
    collective_timeout_s: one collective. drain_timeout_s: requests that still run when the group is told to leave.
    """

    start_timeout_s: float = 600.0
    heartbeat_timeout_s: float = 3.0
    collective_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise ConfigError on a time that is not positive."""
        for name in ("start_timeout_s", "heartbeat_timeout_s", "collective_timeout_s", "drain_timeout_s"):
            value = getattr(self, name)
            _require(value > 0, f"group.{name} is {value:g}, must be above 0")


def _laptop_pools() -> tuple[PoolConfig, ...]:
    # 16,384 tokens per rank: four ranks and all the rest stay well under 6 GB
    cache = CacheConfig(num_blocks=256)
    return (
        PoolConfig(name="prefill", role="prefill", ep=2, cache=cache),
        PoolConfig(name="decode", role="decode", ep=2, cache=cache),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Everything that `baleen up` builds.

    model None: the demo model that ships with baleen. model_name: as clients know it; empty: the name of its directory.
    tls: between routers and ranks, and of transfers; not of clients, nor of what the ranks of a group exchange.
    """

    name: str = "default"
    model_name: str = ""
    model: ModelConfig | None = None
    pools: tuple[PoolConfig, ...] = field(default_factory=_laptop_pools)
    router: RouterConfig = field(default_factory=RouterConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    group: GroupConfig = field(default_factory=GroupConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError on pools that together cannot serve a request, or share a name."""
        _require(
            _NAME.fullmatch(self.name) is not None,
            f"name is {self.name!r}, must be lower-case letters, digits and hyphens, at most 32, a letter first",
        )
        self.transfer.require_clear(self.tls)
        _require(bool(self.pools), "pools is [], must be a list of at least one pool")
        names = [pool.name for pool in self.pools]
        repeated = next((name for name in names if names.count(name) > 1), None)
        _require(repeated is None, f"the pool name {repeated!r} stands twice, must be unique")
        _require("router" not in names, "a pool is called 'router', which is the name of the router's own service")
        _require("gateway" not in names, "a pool is called 'gateway', which is the name of the gateway's own service")
        roles = {pool.role for pool in self.pools}
        _require(
            bool(roles & {"decode", "mixed"}),
            f"the pools have the roles {', '.join(sorted(roles)) or '(none)'}; one must be decode or mixed, or no "
            f"token is ever made",
        )
