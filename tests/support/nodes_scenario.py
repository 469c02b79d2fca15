"""A cluster on a Ray of three nodes that runs already: one group spread over two, one packed on one; a node dies.

The router has room only beside a rank of the spread group, and the node that dies is theirs.

usage: python -m tests.support.nodes_scenario DIRECTORY      in a network namespace

Prints one JSON object of what was seen; the test looks at it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from baleen.redis_config import RedisConfig
from cluster.embedded import EmbeddedRedis
from tests.support.certificates import Authority
from tests.support.cluster_scenario import ADDRESS, Scenario, _generate, _replaced
from tests.support.namespace import REPO, processes_here
from tests.support.redis_server import RedisServer
from workers.cache.announce import open_client

# a packed group fills a node
CONFIG = """
model: {{path: model}}
pools:
  - {{name: wide, role: mixed, ep: 2, strategy: strict_spread, cpus_per_rank: 0.4, cache: {{num_blocks: 64}}}}
  - {{name: packed, role: mixed, ep: 2, strategy: strict_pack, cpus_per_rank: 0.5, cache: {{num_blocks: 64}}}}
group: {{start_timeout_s: 240, drain_timeout_s: 10, heartbeat_timeout_s: 30}}
ray: {{address: "{ray}", auth: token}}
redis: {redis}
router: {{cpus: 0.3}}
"""
BESIDE = """
name: beside
model: {{path: model}}
pools: [{{name: all, role: mixed, cpus_per_rank: 0.25, cache: {{num_blocks: 64}}}}]
group: {{start_timeout_s: 240, drain_timeout_s: 10, heartbeat_timeout_s: 30}}
ray: {{address: "{ray}", auth: token}}
redis: {redis}
router: {{cpus: 0, port: 9100, metrics_port: 0}}
gateway: {{port: 8100}}
"""
PASSWORD = "s3cr3t-of-the-user"


class NodesScenario(Scenario):
    """The same commands, on nodes that the test owns."""

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
        self._live_beside(seen)
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

    def _live_beside(self, seen: dict[str, Any]) -> None:
        """Another cluster on the same Ray: its `baleen up` is killed, and one that is started again ends in order."""
        before = self._placed(self._raylets())
        with self._beside() as killed:
            seen["answer_beside"] = self._answer("127.0.0.1:9100")
            seen["answer_with_both"] = self._answer()
            killed.kill()
            killed.wait(30.0)
        with self._beside() as beside:
            seen["answer_beside_again"] = self._answer("127.0.0.1:9100")
            code, output, _ = self._baleen("status", "--json", "--name", "beside")
            seen["status_beside"] = [rank["info"]["group"] for rank in json.loads(output)["ranks"]] if code == 0 else []
            seen["down_beside"] = self._baleen("down", "--name", "beside")
            beside.wait(30.0)
        seen["said_beside"] = self._log("beside").read_text()
        seen["undisturbed"] = before == self._placed(self._raylets())

    @contextmanager
    def _beside(self) -> Iterator[subprocess.Popen[bytes]]:
        """The `baleen up` of the other cluster, once it is ready."""
        with self._log("beside").open("wb") as errors:
            process = subprocess.Popen(
                self._command("up", "--config", str(self._directory / "beside.yaml")),
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
                process_group=0,
            )
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], self.up_timeout_s)
            assert readable and process.stdout.readline(), self._log("beside").read_text()[-3000:]
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60.0)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.err"

    def _elsewhere(self, *words: str) -> tuple[int, str, str]:
        """A command where nothing is known of the first cluster, as on another machine."""
        environment = {**self._environment, "XDG_RUNTIME_DIR": str(self._directory / "elsewhere")}
        done = subprocess.run(self._command(*words), capture_output=True, text=True, env=environment, timeout=120)
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
        """Each rank of the first cluster in order, once all are well, and the node that it is on."""
        found = []
        ranks = self._await_ranks(lambda ranks: len(ranks) == 4 and all(rank["error"] is None for rank in ranks))
        for info in (rank["info"] for rank in ranks):
            [raylet] = raylets.keys() & {*_ancestors(info["pid"])}
            found.append({name: info[name] for name in ("pool", "rank", "epoch")} | {"node": raylets[raylet]})
        return found

    def _answer(self, address: str = ADDRESS) -> dict[str, Any]:
        """An answer; what it needs may be on its way back."""
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            try:
                return asyncio.run(_generate(address=address, wait_for_ready=True))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise


@contextmanager
def _redis(directory: Path, temporary: Path) -> Iterator[dict[str, str]]:
    """A Redis of others, and how it is reached: TLS, a client certificate, a user who may do what is documented.

    Without Debian's server, which speaks TLS, it is a plain one.
    """
    program = shutil.which("redis-server")
    if program is None:
        with EmbeddedRedis(directory=temporary, tcp=True) as server:
            yield {"url": server.url}
        return
    authority = Authority(directory)
    own, client = authority.issue("redis", "localhost"), authority.issue("client")
    (directory / "password").write_text(PASSWORD + "\n")
    files = {"ca_file": authority.ca_file, "cert_file": client.cert_file, "key_file": client.key_file}
    with RedisServer(
        Path(program),
        temporary,
        port="0",
        tls_port="{port}",
        tls_cert_file=str(own.cert_file),
        tls_key_file=str(own.key_file),
        tls_ca_cert_file=str(authority.ca_file),
        user=f"default on >{PASSWORD} ~* &* +@all",
    ) as tls:
        reached = {"url": f"rediss://localhost:{tls.port}/0", "username": "baleen", "password_file": "password"}
        reached |= {name: path.name for name, path in files.items()}
        admin = {**reached, "username": "", **{name: str(path) for name, path in files.items()}}
        with open_client(RedisConfig(**{**admin, "password_file": str(directory / "password")})) as connection:
            rules = documented_rules(PASSWORD, ["default", "beside", "many"])
            connection.execute_command("ACL SETUSER", *rules)
            yield reached
            # what the user was refused, if anything
            reached["refused"] = json.dumps([str(entry["object"]) for entry in connection.acl_log()], default=str)


def documented_rules(password: str, clusters: Sequence[str]) -> list[str]:
    """What docs/redis.md says that the user must be allowed, for these clusters."""
    found = re.search(r"ACL SETUSER (.*)", (REPO / "docs" / "redis.md").read_text())
    assert found is not None
    rules = []
    for rule in found[1].replace("PASSWORD", password).split():
        rules += [rule.replace("{default}", f"{{{name}}}") for name in clusters] if "{default}" in rule else [rule]
    return rules


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
            with _redis(directory, Path(temporary)) as redis:
                many = BESIDE.replace("name: all, role: mixed", "name: all, role: mixed, ep: 2, strategy: strict_pack")
                texts = {
                    "nodes": CONFIG,
                    "beside": BESIDE,
                    "many": many.replace("cpus_per_rank: 0.25", "cpus_per_rank: 0.45"),
                }
                for name, text in texts.items():
                    (directory / f"{name}.yaml").write_text(text.format(ray=nodes.address, redis=json.dumps(redis)))
                seen = NodesScenario(directory, directory / "nodes.yaml", nodes).run("nodes")
                seen["redis"] = redis
        finally:
            nodes.shutdown()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
