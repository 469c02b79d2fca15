"""Ray but for Serve, as far as the rest of baleen knows it. Imported only where it is used, since it imports Ray."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from baleen.cluster_config import PoolConfig
from baleen.config import RankConfig
from baleen.errors import BaleenError, ConfigError
from cluster.journal import Journal, Send
from cluster.placement import Node, Resources, Taken, rank_need, rank_order
from cluster.rank_launcher import RankLauncher

APPLICATION = "baleen"
CALL_TIMEOUT_S = 60.0
"""Longest wait for an actor's answer that takes no work."""

_SERVE_PREFIX = "SERVE_REPLICA::"
"""Before the name of a service, in the name of the placement group of one of its replicas."""

_POLL_S = 0.1
_CLAIM_S = 15.0
"""Longest wait for a group that leaves to give its number free; Ray takes 12.5 s to know that a node is lost."""

_JOURNAL_S = 3.0
"""Longest wait for the name of a cluster whose `baleen up` was killed, until Ray knows that."""

_HEAD_TIMEOUT_S = 3.0
"""A head that takes longer for the least of questions is taken for lost, until it answers."""


def start_here(*, num_cpus: float, directory: str) -> None:
    """Start a Ray of this process's own, which ends with it. directory: short path for its files and sockets.

    Raises ConfigError if it does not start.
    """
    _connect(address="local", num_cpus=num_cpus, _temp_dir=directory)


def join(address: str) -> None:
    """Connect to a Ray cluster that runs. Raises ConfigError if that fails."""
    _connect(address=address)


def _connect(**arguments: Any) -> None:
    try:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace=APPLICATION,
            **arguments,
        )
    except Exception as error:
        # of no kind of its own where a machine is too busy for Ray to start within half a minute
        raise ConfigError(f"Ray at {arguments['address']} cannot be used: {error}") from error


def leave() -> None:
    """End the connection, and a Ray that was started here. Waits for Ray's head, for ever."""
    ray.shutdown()


def abandon() -> None:
    """End a Ray that was started here and has lost its head; one that was joined is left as it is.

    This process can then end with os._exit only.
    """
    node = ray._private.worker._global_node
    if node is not None and node.head:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def connected() -> bool:
    """Whether this process is part of a Ray."""
    return bool(ray.is_initialized())


def head_answers() -> bool:
    """Whether Ray's head is there, which knows all actors and nodes; most calls of Ray wait for it."""
    worker: Any = ray._private.worker.global_worker
    try:
        worker.gcs_client.internal_kv_exists(b"baleen", namespace=b"baleen", timeout=_HEAD_TIMEOUT_S)
    except RayError:
        return False
    return True


def address() -> str:
    """Where others join this cluster."""
    return str(ray.get_runtime_context().gcs_address)


def node_address() -> str:
    """Of the node that this process is on."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def nodes() -> list[Node]:
    """The nodes that live, what they have free and who has the rest; of what just ended Ray may not know yet."""
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    taken: dict[str, list[Taken]] = {}
    for group in placement_group_table().values():
        for bundle, node_id in group["bundles_to_node_id"].items():
            if group["state"] != "REMOVED" and node_id:
                taken.setdefault(node_id, []).append(Taken(_owner(group), _resources(group["bundles"][bundle])))
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"]:
            node_id, left = node["NodeID"], _resources(free.get(node["NodeID"], {}))
            known = taken.get(node_id, [])
            rest = _resources(node["Resources"]).minus(left)
            for taker in known:
                rest = rest.minus(taker.what)
            found.append(Node(node_id, node["NodeManagerAddress"], left, (*known, Taken("others", rest))))
    return found


def _resources(amounts: Mapping[str, float]) -> Resources:
    return Resources(*(amounts.get(name, 0.0) for name in ("CPU", "GPU", "memory")))


def _owner(group: Mapping[str, Any]) -> str:
    """Whose a placement group is: the service, of one that Serve has made, else its name."""
    name = str(group["name"]).removeprefix(_SERVE_PREFIX)
    return name.partition("#")[0] or f"placement group {group['placement_group_id'][:8]}"


@dataclass(frozen=True, slots=True)
class RankActor:
    """A rank's launcher in an actor of its own. Its methods raise BaleenError where the actor or its node is gone."""

    rank: int
    node_id: str
    _actor: Any

    def host(self) -> str:
        """The address of its node."""
        return str(self._call("node_address", timeout_s=CALL_TIMEOUT_S))

    def free_ports(self, count: int) -> list[int]:
        """See RankLauncher."""
        ports: list[int] = self._call("free_ports", count, timeout_s=CALL_TIMEOUT_S)
        return ports

    def start(self, label: str, config: RankConfig) -> int:
        """See RankLauncher."""
        return int(self._call("start", label, config, timeout_s=CALL_TIMEOUT_S))

    def ask_ready(self, timeout_s: float) -> Pending:
        """Ask without waiting; the answer is Ready or RankEnd."""
        return Pending(self.rank, self._actor.wait_ready.remote(timeout_s))

    def ask_end(self) -> Pending:
        """Ask for the end of the process without waiting; the answer is RankEnd."""
        return Pending(self.rank, self._actor.wait_end.remote())

    def last_lines(self) -> tuple[str, ...]:
        """See RankLauncher."""
        lines: tuple[str, ...] = self._call("last_lines", timeout_s=CALL_TIMEOUT_S)
        return lines

    def ask_stop(self, reason: str, timeout_s: float) -> Pending:
        """Tell it to stop, without waiting."""
        return Pending(self.rank, self._actor.stop.remote(reason, timeout_s))

    def kill(self) -> None:
        """End the actor; its rank's input ends with it."""
        ray.kill(self._actor)

    def _call(self, method: str, *arguments: object, timeout_s: float) -> Any:
        return Pending(self.rank, getattr(self._actor, method).remote(*arguments)).result(timeout_s)


@dataclass(frozen=True, slots=True)
class Pending:
    """An answer that will come."""

    rank: int
    _reference: Any

    def result(self, timeout_s: float) -> Any:
        """Wait for it. Raises BaleenError after `timeout_s`, or if the actor is gone, or what the actor raised."""
        try:
            return ray.get(self._reference, timeout=timeout_s)
        except GetTimeoutError as error:
            raise BaleenError(f"rank {self.rank}: its actor gave no answer within {timeout_s:g} s") from error
        except RayActorError as error:
            raise BaleenError(f"rank {self.rank}: its actor is gone: {str(error).splitlines()[0]}") from error
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, BaleenError) else BaleenError(f"rank {self.rank}: {error}")) from error


def first_of(pending: Sequence[Any], timeout_s: float) -> list[Any]:
    """Those Pending that have an answer; waits up to `timeout_s` for the first."""
    by_reference = {item._reference: item for item in pending}
    done, _ = ray.wait(list(by_reference), num_returns=1, timeout=timeout_s, fetch_local=False)
    if done:
        done, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0, fetch_local=False)
    return [by_reference[reference] for reference in done]


class _Launcher(RankLauncher):
    """The launcher, inside Ray, where it can tell its node's address."""

    def __init__(self, cluster: str, host: str, log_directory: str | None) -> None:
        super().__init__(host or node_address(), log_directory, None if log_directory else journal(cluster))

    def node_address(self) -> str:
        return self.host


def rank_actors(
    cluster: str, pool: PoolConfig, *, most_groups: int, host: str, log_directory: str | None
) -> tuple[int, list[RankActor]]:
    """Start one actor in each bundle of this replica's placement group; the group's number, and they in rank order.

    host: address of every rank; empty: that of its node. The number is the least that no living group of the pool has,
    below most_groups if one is soon free; Serve's own number of a replica changes when others leave.
    """
    group = get_current_placement_group()
    assert group is not None, "a replica of a pool owns a placement group"
    table = placement_group_table(group)["bundles_to_node_id"]
    bundle_nodes = [str(table[bundle]) for bundle in range(pool.ep)]
    need = rank_need(pool)
    options: dict[str, Any] = {"num_cpus": need.cpus, "num_gpus": need.gpus, "max_restarts": 0, "max_concurrency": 8}
    if need.memory_bytes:
        options["memory"] = need.memory_bytes
    # three calls may wait at once (ready, end, stop), and others are asked meanwhile
    remote: Any = ray.remote(_Launcher)

    def start(bundle: int, **named: str) -> Any:
        strategy = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=bundle)
        return remote.options(scheduling_strategy=strategy, **options, **named).remote(cluster, host, log_directory)

    first, *others = rank_order(bundle_nodes)
    number, actor = _claim(f"{cluster}/{pool.name}", most_groups, lambda name: start(first, name=name))
    actors = [RankActor(0, bundle_nodes[first], actor)]
    actors += [RankActor(rank, bundle_nodes[bundle], start(bundle)) for rank, bundle in enumerate(others, 1)]
    return number, actors


def _claim(pool: str, count: int, start: Callable[[str], Any]) -> tuple[int, Any]:
    """Start an actor under the first free name of a pool; Ray holds a name for as long as its actor lives.

    A group that is leaving is waited for, for a while, before a number from `count` on is taken.
    """
    deadline = time.monotonic() + _CLAIM_S
    for number in itertools.cycle(range(count)):
        try:
            return number, start(f"{pool}/{number}")
        except ValueError:
            # another group has it
            if time.monotonic() > deadline:
                break
            if number == count - 1:
                time.sleep(_POLL_S)
    for number in itertools.count(count):
        with contextlib.suppress(ValueError):
            return number, start(f"{pool}/{number}")
    raise AssertionError("there is always a next number")


def start_journal(cluster: str, directory: str) -> object:
    """Keep the logs of all nodes in `directory` of this one, until what is returned is let go.

    Raises ConfigError if another cluster of that name runs on the same Ray.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(Journal)
    deadline = time.monotonic() + _JOURNAL_S
    while True:
        try:
            return remote.options(name=_journal(cluster), num_cpus=0, scheduling_strategy=here).remote(directory)
        except ValueError as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"name is {cluster!r}: a cluster of that name runs on this Ray already") from error
        time.sleep(_POLL_S)


def journal(cluster: str) -> Send | None:
    """What sends to the cluster's journal; None if it has none."""
    try:
        actor = ray.get_actor(_journal(cluster), namespace=APPLICATION)
    except ValueError:
        return None

    def send(name: str, text: bytes) -> None:
        actor.append.remote(name, text)

    return send


def _journal(cluster: str) -> str:
    return f"{cluster}/journal"
