"""A cluster on a Ray of three nodes that runs already: one group spread over two, one packed on one; a node dies.

The router has room only beside a rank of the spread group, and the node that dies is theirs.

usage: python -m tests.support.nodes_scenario DIRECTORY      in a network namespace

Prints one JSON object of what was seen; the test looks at it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio

from cluster.embedded import EmbeddedRedis
from tests.support.cluster_scenario import Scenario, _generate, _replaced
from tests.support.namespace import REPO, processes_here

# a packed group fills a node
CONFIG = """
model: {{path: model}}
pools:
  - {{name: wide, role: mixed, ep: 2, strategy: strict_spread, cpus_per_rank: 0.4, cache: {{num_blocks: 64}}}}
  - {{name: packed, role: mixed, ep: 2, strategy: strict_pack, cpus_per_rank: 0.5, cache: {{num_blocks: 64}}}}
group: {{start_timeout_s: 120, drain_timeout_s: 10}}
ray: {{address: "{ray}", auth: token}}
redis: {{url: "{redis}"}}
router: {{cpus: 0.3}}
"""
TOO_MANY = CONFIG.replace("cpus: 0.3", "cpus: 0.3, port: 9100, metrics_port: 0") + "name: many\n"


class NodesScenario(Scenario):
    """The same commands, on nodes that the test owns."""

    up_timeout_s = 240.0
    back_timeout_s = 180.0

    def __init__(self, directory: Path, config: Path, nodes: Any) -> None:
        super().__init__(directory, config)
        self._nodes = nodes

    def _use(self, seen: dict[str, Any]) -> None:
        """Ask it, try other clusters, kill the router, then its replica, then their node; ask again each time."""
        seen["answer"] = self._answer()
        raylets = self._raylets()
        seen["before"] = self._placed(raylets)
        seen["too_many"] = self._baleen("up", "--config", str(self._directory / "many.yaml"), "--name", "many")
        seen["same_name"] = self._elsewhere("up", "--config", str(self._config))
        router = self._router()
        for name in ("router", "replica"):
            os.kill(router if name == "router" else _ancestors(router)[0], signal.SIGKILL)
            router = self._router(router)
            seen[f"answer_after_{name}"] = self._answer()
        self._nodes.add_node(num_cpus=1)
        ranks = self._ranks()
        [of_router] = raylets.keys() & {*_ancestors(router)}
        seen["killed"] = raylets[of_router]
        raylet = next(_raylet(node) for node in self._nodes.worker_nodes if node.node_id == raylets[of_router])
        raylet.kill()
        # its workers end once it is no process any more, which it is until its parent has waited for it
        raylet.wait()
        self._router(router)
        seen["answer_without_node"] = self._answer()
        self._await_ranks(_replaced("wide/0", ranks, 4))
        raylets |= self._raylets()
        seen["after"] = self._placed(raylets)
        seen["answer_after"] = self._answer()
        seen["logs"] = self._baleen("logs", "--lines", "200")

    def _elsewhere(self, *words: str) -> tuple[int, str, str]:
        """A command where nothing is known of the first cluster, as on another machine."""
        environment = {**self._environment, "XDG_RUNTIME_DIR": str(self._directory / "elsewhere")}
        done = subprocess.run(self._command(*words), capture_output=True, text=True, env=environment, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def _router(self, former: int = 0) -> int:
        """The process id of the one router, once there is one and it is not the former."""
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            found = [pid for pid, words in processes_here() if "cluster.router_process" in words]
            if len(found) == 1 and found != [former]:
                return found[0]
            assert time.monotonic() < deadline, f"one router wanted: {found}"
            time.sleep(0.1)

    def _raylets(self) -> dict[int, str]:
        """The nodes, by the process ids of their raylets."""
        return {_raylet(node).pid: node.node_id for node in (self._nodes.head_node, *self._nodes.worker_nodes)}

    def _placed(self, raylets: dict[int, str]) -> list[dict[str, Any]]:
        """Each rank in order, and the node that it is on."""
        found = []
        for info in (rank["info"] for rank in self._ranks()):
            [raylet] = raylets.keys() & {*_ancestors(info["pid"])}
            found.append({name: info[name] for name in ("pool", "rank", "epoch")} | {"node": raylets[raylet]})
        return found

    def _answer(self) -> dict[str, Any]:
        """An answer; what it needs may be on its way back."""
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            try:
                return asyncio.run(_generate())
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


def _ancestors(pid: int) -> list[int]:
    """Its parent, the parent of that, and so on."""
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
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

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
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
