"""A cluster on a Ray of two hosts with addresses of their own: both prefill together, one decodes; their cable is cut.

usage: python -m tests.support.hosts_scenario DIRECTORY      as root in a network namespace

Prints one JSON object of what was seen; the test looks at it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc.aio

from cluster.embedded import find_server
from tests.support.cluster_scenario import LONG, Scenario, _generate, _golden, _replaced
from tests.support.namespace import REPO
from tests.support.two_hosts import HERE, THERE, TwoHosts

# the ranks that prefill are one on each host, those that decode have room there only
CONFIG = f"""
model: {{path: model}}
pools:
  - {{name: prefill, role: prefill, ep: 2, cpus_per_rank: 0.4, strategy: strict_spread, cache: {{num_blocks: 64}}}}
  - {{name: decode, role: decode, ep: 2, cpus_per_rank: 1.3, strategy: strict_pack, cache: {{num_blocks: 64}}}}
group: {{start_timeout_s: 120, drain_timeout_s: 10}}
ray: {{address: "{HERE}:6379", auth: disabled}}
redis: {{url: "redis://{HERE}:6390"}}
"""
START_TIMEOUT_S = 120.0
CUT_S = 7.0
"""Longer than leases and sessions last, shorter than Ray waits for a node."""


class HostsScenario(Scenario):
    """The same commands, on hosts of the test."""

    up_timeout_s = 200.0
    back_timeout_s = 60.0

    def __init__(self, directory: Path, config: Path, hosts: TwoHosts) -> None:
        super().__init__(directory, config)
        self._hosts = hosts

    def _use(self, seen: dict[str, Any]) -> None:
        """The goldens, and again after the cable was cut while a request ran."""
        seen["golden"] = asyncio.run(_golden())
        seen["ranks"] = self._ranks()
        alone = asyncio.run(_generate(LONG))
        seen["cut"] = asyncio.run(self._cut_while_one_runs(alone))
        # its ranks had lost each other
        seen["ranks_after"] = self._await_ranks(_replaced("prefill/0", seen["ranks"], 4))
        seen["alike_after"] = self._answer() == alone
        seen["at_rest"] = self._await_ranks(
            lambda ranks: len(ranks) == 4 and not any(map(_holds_something, ranks)),
        )

    async def _cut_while_one_runs(self, alone: dict[str, Any]) -> dict[str, Any]:
        """How that request ended, and when."""
        loop = asyncio.get_running_loop()
        begin = loop.time()

        def cut() -> None:
            self._hosts.cut()
            loop.call_later(CUT_S, self._hosts.mend)

        try:
            answer: dict[str, Any] = await _generate(LONG, at_first=cut)
            found: dict[str, Any] = {"alike": answer == alone}
        except grpc.aio.AioRpcError as error:
            found = {"error": error.code().name, "details": error.details()}
        found["seconds"] = loop.time() - begin
        # the answer may have been on its way when the cable was cut
        await asyncio.sleep(max(0.0, CUT_S + 0.5 - found["seconds"]))
        return found

    def _answer(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            try:
                return asyncio.run(_generate(LONG))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise


def _holds_something(rank: dict[str, Any]) -> bool:
    load = rank["load"]
    return load is None or any(load[f"{state}_blocks"] for state in ("held", "arriving", "lent"))


def _await_nodes(count: int) -> None:
    # reads the environment
    from ray._raylet import GcsClient
    from ray.exceptions import RayError

    deadline = time.monotonic() + START_TIMEOUT_S
    found = 0
    while found < count:
        assert time.monotonic() < deadline, f"{found} of {count} nodes"
        time.sleep(0.2)
        with suppress(RayError, RuntimeError, ConnectionError):
            found = len(GcsClient(address=f"{HERE}:6379").get_all_node_info(timeout=5))


def main(directory: Path) -> None:
    """Everything."""
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="bh-", dir="/tmp"))
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": temporary,
            "TMPDIR": temporary,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPO),
            # a node that is cut off for a moment on a busy machine is not lost
            "RAY_health_check_failure_threshold": "20",
        }
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(lambda: [process.wait(30.0) for process in started])
        hosts = stack.enter_context(TwoHosts())

        def start(*command: str) -> None:
            log = stack.enter_context((directory / "hosts.log").open("ab"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPO)
            started.append(process)

        redis = (str(find_server()), "--bind", HERE, "--port", "6390", "--save", "", "--protected-mode", "no")
        start(*redis, "--dir", temporary)
        ray = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
        head = ("--head", "--port", "6379", "--include-dashboard", "false", "--num-cpus", "1")
        start(*ray, *head, "--node-ip-address", HERE)
        other = ("--address", f"{HERE}:6379", "--num-cpus", "3")
        start(*hosts.there([*ray, *other, "--node-ip-address", THERE]))
        _await_nodes(2)
        config = directory / "hosts.yaml"
        config.write_text(CONFIG)
        seen = HostsScenario(directory, config, hosts).run("nodes")
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
