"""Where the ranks of a cluster could lie: pools and nodes in, bundles out, or the resource that is missing. Pure.

Ray places for real; this says beforehand whether it can, and if not, what is missing where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from baleen.cluster_config import ClusterConfig, PoolConfig

GIB = 1 << 30

MOST_NAMED = 4
"""Holders of a resource that an error names."""

ROUTER = "router"
"""Stands for the router's service among the pools; no pool has this name."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Processors, GPUs and bytes of memory: what a node has free, or what a rank needs."""

    cpus: float
    gpus: float
    memory_bytes: float

    def holds(self, need: Resources) -> bool:
        """Whether `need` fits in."""
        return not shortages(need, self)

    def minus(self, need: Resources) -> Resources:
        """What is left beside `need`."""
        return Resources(self.cpus - need.cpus, self.gpus - need.gpus, self.memory_bytes - need.memory_bytes)


@dataclass(frozen=True, slots=True)
class Taken:
    """What somebody has of a machine, and who, for people."""

    by: str
    what: Resources


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, what it has free, and who has the rest, as far as that is known."""

    node_id: str
    address: str
    free: Resources
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacedGroup:
    """One group: the node of each of its ranks, in the order of ranks."""

    pool: str
    group: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A group that does not fit, and what it lacks, for people."""

    pool: str
    group: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Every group of the cluster, in the order of the configuration: placed, or not and why."""

    placed: tuple[PlacedGroup, ...]
    unplaced: tuple[Unplaced, ...]


def rank_need(pool: PoolConfig) -> Resources:
    """What one rank of the pool takes."""
    return Resources(pool.cpus_per_rank, pool.gpus_per_rank, pool.memory_gib_per_rank * GIB)


def pools_and_router(config: ClusterConfig) -> list[PoolConfig]:
    """All that needs a place: the pools, and the router's replicas as if they were groups of one."""
    if config.router.cpus == 0:
        return list(config.pools)
    router = PoolConfig(name=ROUTER, role="mixed", groups=config.router.replicas, cpus_per_rank=config.router.cpus)
    return [*config.pools, router]


def bundles(pool: PoolConfig) -> list[dict[str, float]]:
    """The bundles of one group as Ray wants them, one per rank."""
    need = rank_need(pool)
    wanted = {"CPU": need.cpus, "GPU": need.gpus, "memory": need.memory_bytes}
    return [{name: amount for name, amount in wanted.items() if amount > 0} for _ in range(pool.ep)]


def rank_order(bundle_nodes: Sequence[str]) -> list[int]:
    """Which bundle each rank takes, given the node of each bundle: by node, then by bundle.

    Ranks of one node are neighbours, and a group that is placed alike is numbered alike.
    """
    return sorted(range(len(bundle_nodes)), key=lambda bundle: (bundle_nodes[bundle], bundle))


def plan(
    pools: Sequence[PoolConfig],
    nodes: Sequence[Node],
    *,
    most: bool = False,
    addresses: Mapping[str, str] | None = None,
) -> Plan:
    """Place every group that there always is, or with `most` every one that there may be.

    Those that there always are come first, of them those that are bound to an address (by pool), then the ones with
    the largest ranks; a group lies whole or not at all.
    """
    addresses = addresses or {}
    free = {node.node_id: node for node in sorted(nodes, key=lambda node: node.node_id)}
    wanted = [(pool, group) for pool in pools for group in range(pool.most_groups if most else pool.least_groups)]
    by_size = sorted(
        wanted,
        key=lambda item: (item[1] < item[0].least_groups, item[0].name in addresses, _size(item[0])),
        reverse=True,
    )
    placed: dict[tuple[str, int], PlacedGroup] = {}
    unplaced: dict[tuple[str, int], Unplaced] = {}
    for pool, group in by_size:
        need = rank_need(pool)
        allowed = [node for node in free.values() if addresses.get(pool.name, node.address) == node.address]
        chosen = _place(pool, need, allowed)
        if len(chosen) < pool.ep:
            reason = _reason(pool, need, allowed, num_placed=len(chosen))
            unplaced[pool.name, group] = Unplaced(pool.name, group, reason)
            continue
        ordered = sorted(chosen)
        placed[pool.name, group] = PlacedGroup(pool.name, group, tuple(free[node_id] for node_id in ordered))
        for node_id in ordered:
            node = free[node_id]
            taken = (*node.taken, Taken(f"pool {pool.name} of this cluster", need))
            free[node_id] = replace(node, free=node.free.minus(need), taken=taken)
    keys = [(pool.name, group) for pool, group in wanted]
    return Plan(
        tuple(placed[key] for key in keys if key in placed), tuple(unplaced[key] for key in keys if key in unplaced)
    )


def shortages(need: Resources, free: Resources, taken: Sequence[Taken] = ()) -> list[str]:
    """What of `need` is more than `free`, and who has it, for people."""
    # sums of shares such as 0.1 miss by a rounding error
    slack = 1e-6
    found = []
    if need.cpus > free.cpus + slack:
        held = _holders([(taker.by, taker.what.cpus) for taker in taken])
        found.append(f"CPU: needs {need.cpus:g}, free {max(0.0, free.cpus):g}{held}")
    if need.gpus > free.gpus + slack:
        held = _holders([(taker.by, taker.what.gpus) for taker in taken])
        found.append(f"GPU: needs {need.gpus:g}, free {max(0.0, free.gpus):g}{held}")
    if need.memory_bytes > free.memory_bytes + slack:
        held = _holders([(taker.by, taker.what.memory_bytes / GIB) for taker in taken], unit=" GiB", digits=2)
        found.append(
            f"memory: needs {need.memory_bytes / GIB:.2f} GiB, free {max(0.0, free.memory_bytes) / GIB:.2f} GiB{held}"
        )
    return found


def _holders(amounts: Sequence[tuple[str, float]], *, unit: str = "", digits: int = 4) -> str:
    """Who has how much of something, those with the most first."""
    sums: dict[str, float] = {}
    for by, amount in amounts:
        sums[by] = sums.get(by, 0.0) + amount
    most = sorted(((amount, by) for by, amount in sums.items() if round(amount, digits) > 0), reverse=True)
    shown = ", ".join(f"{by} has {round(amount, digits):g}{unit}" for amount, by in most[:MOST_NAMED])
    rest = f" and {len(most) - MOST_NAMED} more" if len(most) > MOST_NAMED else ""
    return f" ({shown}{rest})" if shown else ""


def _size(pool: PoolConfig) -> tuple[float, float, float]:
    need = rank_need(pool)
    return need.gpus, need.memory_bytes, need.cpus


def _place(pool: PoolConfig, need: Resources, nodes: Sequence[Node]) -> list[str]:
    """The node of each rank; fewer than `pool.ep` where the rest has no place."""
    room = {node.node_id: min(_how_often(need, node.free), pool.ep) for node in nodes}
    if pool.strategy == "strict_pack":
        # the smallest hole that holds the group, so that large ones stay
        holes = sorted((_how_often(need, node.free), node.node_id) for node in nodes)
        return next(([node_id] * pool.ep for count, node_id in holes if count >= pool.ep), [])
    if pool.strategy == "strict_spread":
        return [node_id for node_id in room if room[node_id] > 0][: pool.ep]
    chosen: list[str] = []
    if pool.strategy == "pack":
        for node_id in sorted(room, key=lambda node_id: (-room[node_id], node_id)):
            chosen += [node_id] * min(room[node_id], pool.ep - len(chosen))
        return chosen
    while len(chosen) < pool.ep and any(room.values()):
        for node_id in room:
            if room[node_id] > 0 and len(chosen) < pool.ep:
                chosen.append(node_id)
                room[node_id] -= 1
    return chosen


def _how_often(need: Resources, free: Resources) -> int:
    """How many ranks fit side by side."""
    pairs = ((need.cpus, free.cpus), (need.gpus, free.gpus), (need.memory_bytes, free.memory_bytes))
    return max(0, min(int((has + 1e-6) / wants) for wants, has in pairs if wants > 0))


def _reason(pool: PoolConfig, need: Resources, nodes: Sequence[Node], *, num_placed: int) -> str:
    if not nodes:
        return "there is no node"
    if pool.strategy == "strict_spread" and num_placed:
        return f"strict_spread needs a node with room for each of {pool.ep} ranks, there are {num_placed}"
    together = pool.strategy == "strict_pack"
    if together or num_placed == 0:
        asked = _times(need, pool.ep) if together else need
        nearest = min(nodes, key=lambda node: (len(shortages(asked, node.free)), -node.free.cpus))
        room = f"all {pool.ep} ranks" if together else "a rank"
        lacks = "; ".join(shortages(asked, nearest.free, nearest.taken))
        return f"no node has room for {room}; the nearest, {nearest.address}, lacks {lacks}"
    total = Resources(
        sum(node.free.cpus for node in nodes),
        sum(node.free.gpus for node in nodes),
        sum(node.free.memory_bytes for node in nodes),
    )
    taken = [taker for node in nodes for taker in node.taken]
    lacks = (
        "; ".join(shortages(_times(need, pool.ep), total, taken)) or "what is free lies in pieces too small for a rank"
    )
    return f"the cluster has room for {num_placed} of {pool.ep} ranks; {lacks}"


def _times(need: Resources, count: int) -> Resources:
    return Resources(need.cpus * count, need.gpus * count, need.memory_bytes * count)
