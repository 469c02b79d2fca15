"""A cluster on a Ray of four nodes that runs already: one group spread over two, one packed on one; a node dies.

usage: python -m tests.support.nodes_scenario DIRECTORY      in a network namespace

Prints one JSON object of what was seen; the test looks at it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio

from cluster.embedded import EmbeddedRedis
from tests.support.cluster_scenario import Scenario, _generate, _replaced
from tests.support.namespace import REPO

# a packed group fills a node
CONFIG = """
model: {{path: model}}
pools:
  - {{name: wide, role: mixed, ep: 2, strategy: strict_spread, cpus_per_rank: 0.4, cache: {{num_blocks: 64}}}}
  - {{name: packed, role: mixed, ep: 2, strategy: strict_pack, cpus_per_rank: 0.5, cache: {{num_blocks: 64}}}}
group: {{start_timeout_s: 120, drain_timeout_s: 10}}
ray: {{address: "{ray}", auth: token}}
redis: {{url: "{redis}"}}
"""
TOO_MANY = CONFIG + "name: many\nrouter: {{port: 9100, metrics_port: 0}}\n"


class NodesScenario(Scenario):
    """The same commands, on nodes that the test owns."""

    up_timeout_s = 240.0
    back_timeout_s = 180.0

    def __init__(self, directory: Path, config: Path, nodes: Any) -> None:
        super().__init__(directory, config)
        self._nodes = nodes

    def _use(self, seen: dict[str, Any]) -> None:
        """Ask it, try another cluster that is too large, kill a raylet, ask again."""
        others = {node.node_id: node for node in self._nodes.worker_nodes}
        raylets = {_raylet(node).pid: node.node_id for node in (self._nodes.head_node, *others.values())}
        seen["answer"] = self._answer()
        seen["before"] = self._placed(raylets)
        seen["too_many"] = self._baleen("up", "--config", str(self._directory / "many.yaml"), "--name", "many")
        ranks = self._ranks()
        # not the head, which is Ray itself
        victim = next(rank["node"] for rank in seen["before"] if rank["pool"] == "wide" and rank["node"] in others)
        seen["killed"] = victim
        raylet = _raylet(others[victim])
        raylet.kill()
        # its workers end once it is no process any more, which it is until its parent has waited for it
        raylet.wait()
        self._await_ranks(_replaced("wide/0", ranks, 4))
        seen["after"] = self._placed(raylets)
        seen["answer_after"] = self._answer()
        seen["logs"] = self._baleen("logs", "--lines", "200")

    def _placed(self, raylets: dict[int, str]) -> list[dict[str, Any]]:
        """Each rank in order, and the node that it is on."""
        found = []
        for info in (rank["info"] for rank in self._ranks()):
            [raylet] = _ancestors(info["pid"]) & raylets.keys()
            found.append({name: info[name] for name in ("pool", "rank", "epoch")} | {"node": raylets[raylet]})
        return found

    def _answer(self) -> dict[str, Any]:
        """An answer; the router may be on its way to another node."""
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            try:
                return asyncio.run(_generate())
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def main(directory: Path) -> None:
    """Everything."""
    with tempfile.TemporaryDirectory(prefix="bn-", dir="/tmp") as temporary:
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "7" * 64,
            "RAY_TMPDIR": temporary,
            "TMPDIR": temporary,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPO),
        }
        # reads the environment
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(3):
                nodes.add_node(num_cpus=1)
            with EmbeddedRedis(directory=Path(temporary), tcp=True) as redis:
                config = directory / "nodes.yaml"
                config.write_text(CONFIG.format(ray=nodes.address, redis=redis.url))
                many = TOO_MANY.replace("cpus_per_rank: 0.5", "cpus_per_rank: 3")
                (directory / "many.yaml").write_text(many.format(ray=nodes.address, redis=redis.url))
                seen = NodesScenario(directory, config, nodes).run("nodes")
        finally:
            nodes.shutdown()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
