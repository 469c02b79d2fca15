"""What a cluster file would start: sizes of every rank, the place of every group, and every rule that it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baleen.blocks import BLOCK_TOKENS, blocks_for
from baleen.cluster_config import ClusterConfig, PoolConfig
from baleen.config import ModelConfig
from baleen.errors import ConfigError
from baleen.model_spec import ModelSpec
from cluster.placement import GIB, Node, Plan, Unplaced, plan, pools_and_router
from workers.model.sizes import cache_bytes_per_block, official_dtypes, rank_bytes

PROCESS_BYTES = 300 << 20
"""Memory of a rank process beside weights and cache: interpreter and libraries, measured without a GPU."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes that one rank of a pool needs. Activations are not counted."""

    weights: int
    cache: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.cache + self.process


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What would be started. memory: by pool, None where it cannot be told. violations: in no order of weight.

    warnings: what will not be as asked for, though the cluster starts.
    """

    config: ClusterConfig
    spec: ModelSpec
    memory: dict[str, RankMemory | None]
    plan: Plan | None
    violations: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """The report for reading."""
        config, spec = self.config, self.spec
        num_ranks = sum(pool.least_groups * pool.ep for pool in config.pools)
        num_groups = sum(pool.least_groups for pool in config.pools)
        lines = [
            f"cluster {config.name}: {len(config.pools)} pools, {num_groups} groups, {num_ranks} ranks",
            f"model: {spec.num_layers} layers, {spec.num_experts} experts, {spec.max_positions:,} positions",
            f"redis: {config.redis.shown or 'embedded'}",
            f"between routers and ranks, and of transfers: {'TLS' if config.tls.enabled else 'no TLS'}",
            f"blocks move by {config.transfer.transport}",
            f"ray: {config.ray.address or 'started here'}, authentication {config.ray.auth}",
            f"router: {config.router.replicas} x {config.router.host}:{config.router.port}, policy "
            f"{config.router.policy}",
            f"gateway: {config.gateway.replicas} x {config.gateway.host}:{config.gateway.port}",
        ]
        for pool in config.pools:
            lines += self._pool_lines(pool)
        lines += [f"warning: {warning}" for warning in self.warnings]
        if self.violations:
            lines.append(f"violated: {len(self.violations)}")
            lines += [f"  {violation}" for violation in self.violations]
        else:
            lines.append("no rule is violated")
        return "\n".join(lines) + "\n"

    def _pool_lines(self, pool: PoolConfig) -> list[str]:
        share = [f"{pool.cpus_per_rank:g} CPU"]
        share += [f"{pool.gpus_per_rank} GPU"] if pool.gpus_per_rank else []
        share += [f"{pool.memory_gib_per_rank:g} GiB"] if pool.memory_gib_per_rank else []
        groups = f"{pool.min_groups} to {pool.max_groups}" if pool.scales else str(pool.groups)
        lines = [
            f"pool {pool.name}: role {pool.role}, {groups} x EP {pool.ep}, {pool.strategy}, "
            f"each rank {', '.join(share)}"
        ]
        memory = self.memory[pool.name]
        if memory is not None:
            lines.append(
                f"  memory of a rank: weights {_gib(memory.weights)} + cache {_gib(memory.cache)} "
                f"({pool.cache.num_blocks * BLOCK_TOKENS:,} tokens, {pool.cache.dtype}) + process "
                f"{_gib(memory.process)} = {_gib(memory.total)}"
            )
        for group in self.plan.placed if self.plan else ():
            if group.pool == pool.name:
                lines.append(f"  group {group.group}: ranks on {', '.join(node.address for node in group.nodes)}")
        return lines


def check(config: ClusterConfig, model: ModelConfig, spec: ModelSpec, nodes: Sequence[Node] | None) -> CheckReport:
    """Compare a configuration with its model and with the nodes; without nodes nothing is placed."""
    memory = {pool.name: _rank_memory(pool, model, spec) for pool in config.pools}
    violations = [violation for pool in config.pools for violation in _pool_rules(pool, spec, memory[pool.name])]
    violations += _cluster_rules(config)
    placed = None
    warnings = _cluster_warnings(config)
    if nodes is not None:
        placed = plan(pools_and_router(config), nodes)
        violations += [f"pool {group.pool}, group {group.group}: {group.reason}" for group in placed.unplaced]
        if not placed.unplaced:
            on_cpu = {pool.name: memory[pool.name] for pool in config.pools if pool.gpus_per_rank == 0}
            violations += _node_rules(placed, on_cpu)
            warnings += [
                f"pool {group.pool}: max_groups is out of reach from group {group.group} on: {group.reason}"
                for group in _first_of_each_pool(plan(pools_and_router(config), nodes, most=True).unplaced)
            ]
    return CheckReport(config, spec, memory, placed, tuple(violations), tuple(warnings))


def _first_of_each_pool(unplaced: Sequence[Unplaced]) -> list[Unplaced]:
    return list({group.pool: group for group in reversed(unplaced)}.values())[::-1]


def _rank_memory(pool: PoolConfig, model: ModelConfig, spec: ModelSpec) -> RankMemory | None:
    try:
        weights = rank_bytes(spec, official_dtypes(spec), world_size=pool.ep)
        block = cache_bytes_per_block(spec, pool.cache.dtype)
    except ConfigError:
        # the rules say which number is wrong
        return None
    return RankMemory(
        weights.float32 if model.compute_dtype == "float32" else weights.bfloat16, pool.cache.num_blocks * block
    )


def _pool_rules(pool: PoolConfig, spec: ModelSpec, memory: RankMemory | None) -> list[str]:
    found = []
    if spec.num_experts % pool.ep:
        found.append(f"ep is {pool.ep}, must divide the model's {spec.num_experts} experts")
    try:
        cache_bytes_per_block(spec, pool.cache.dtype)
    except ConfigError as error:
        found.append(str(error))
    asked = pool.engine.max_context
    if asked > spec.max_positions:
        found.append(f"engine.max_context is {asked}, must be at most the model's {spec.max_positions} positions")
    if asked and blocks_for(asked) > pool.cache.num_blocks:
        found.append(
            f"cache.num_blocks is {pool.cache.num_blocks}, must be at least {blocks_for(asked)} for one request of "
            f"engine.max_context ({asked} tokens)"
        )
    given = pool.memory_gib_per_rank * GIB
    if memory is not None and given and pool.gpus_per_rank == 0 and memory.total > given:
        found.append(f"memory_gib_per_rank is {pool.memory_gib_per_rank:g}, must be at least {memory.total / GIB:.2f}")
    return [f"pool {pool.name}: {text}" for text in found]


def _cluster_rules(config: ClusterConfig) -> list[str]:
    found = []
    first = config.pools[0]
    for other in config.pools[1:]:
        if other.cache.dtype != first.cache.dtype:
            found.append(
                f"pool {other.name}: cache.dtype is {other.cache.dtype}, must be {first.cache.dtype} as in pool "
                f"{first.name}: blocks move between them"
            )
    if config.ray.address and not config.redis.url:
        found.append(
            f"redis.url is empty, must be given with ray.address ({config.ray.address}): the embedded server is "
            f"reached from this machine only"
        )
    router = config.router
    if router.node and not config.ray.address:
        found.append(f"router.node is {router.node!r}, must be empty without ray.address: there is one node only")
    elif router.node and _is_loopback(router.host) and not _is_loopback(router.node):
        found.append(
            f"router.host is {router.host}, must be an address that others reach, such as router.node ({router.node})"
        )
    if config.group.heartbeat_timeout_s < 0.75:
        found.append(f"group.heartbeat_timeout_s is {config.group.heartbeat_timeout_s:g}, must be at least 0.75")
    return found


def _cluster_warnings(config: ClusterConfig) -> list[str]:
    if config.ray.address and not config.router.node and _is_loopback(config.router.host):
        return [f"router.host is {config.router.host}: only clients on the machine of `baleen up` reach the routers"]
    return []


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "[::1]" or host.startswith("127.")


def _node_rules(placed: Plan, memory: dict[str, RankMemory | None]) -> list[str]:
    """Real memory against what ranks need on each node, also where Ray was told to count none."""
    needs: dict[str, int] = {}
    nodes: dict[str, Node] = {}
    for group in placed.placed:
        need = memory.get(group.pool)
        for node in group.nodes:
            nodes[node.node_id] = node
            needs[node.node_id] = needs.get(node.node_id, 0) + (need.total if need is not None else 0)
    return [
        f"node {nodes[node_id].address}: its ranks need {_gib(need)} of memory, must be at most the "
        f"{_gib(nodes[node_id].free.memory_bytes)} that are free"
        for node_id, need in needs.items()
        if need > nodes[node_id].free.memory_bytes
    ]


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
