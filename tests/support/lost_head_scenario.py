"""A Ray of others whose head is killed while `baleen up` waits within a call of it.

usage: python -m tests.support.lost_head_scenario DIRECTORY      in a network namespace; DIRECTORY holds a model

Prints one JSON object of what was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cluster.embedded import EmbeddedRedis
from tests.support.namespace import REPO, processes_here

CONFIG = """
model: {{path: model}}
pools: [{{name: all, role: mixed, cache: {{num_blocks: 64}}}}]
ray: {{address: "{ray}", auth: token}}
redis: {{url: "{redis}"}}
"""

# the command itself, which says when it is about to ask for the nodes, and does so once the head is gone
PROGRAM = """
import os, sys
from cluster import cli, head_calls
from cluster.foreground import Foreground

head_calls.HEAD_PATIENCE_S = 2.0
whole = head_calls.HeadCalls.__call__

def call(self, function, *args, **kwargs):
    def asked():
        os.write(2, b"in a call\\n")
        os.read(0, 1)
        return function(*args, **kwargs)
    return whole(self, asked) if function.__name__ == "nodes" else whole(self, function, *args, **kwargs)

head_calls.HeadCalls.__call__ = call
# what it serves is not looked at here
Foreground._check = lambda self: None
sys.exit(cli.main(sys.argv[1:]))
"""


def scenario(directory: Path, temporary: Path, nodes: Any, redis: str) -> dict[str, Any]:
    """How it ended, and what is left of it."""
    config = directory / "lost_head.yaml"
    config.write_text(CONFIG.format(ray=nodes.address, redis=redis))
    up = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "up", "--config", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory / "run"), "TMPDIR": str(temporary)},
        cwd=REPO,
    )
    try:
        assert up.stderr is not None
        said = []
        for line in up.stderr:
            said.append(line)
            if line == "in a call\n":
                break
        assert up.poll() is None, "".join(said)
        head = nodes.head_node.all_processes["gcs_server"][0].process
        head.kill()
        head.wait()
        output, errors = up.communicate("\n", timeout=60)
    finally:
        up.kill()
    return {
        "address": nodes.address,
        "code": up.returncode,
        "output": output,
        "errors": "".join(said) + errors,
        "files": [str(path) for place in (temporary, directory / "run") for path in place.rglob("*")],
        "raylets": sum("/raylet " in words for _, words in processes_here()),
    }


def main(directory: Path) -> None:
    """Everything."""
    # short, since sockets lie in them
    with (
        tempfile.TemporaryDirectory(prefix="bh-", dir="/tmp") as of_ray,
        tempfile.TemporaryDirectory(prefix="bh-", dir="/tmp") as temporary,
        EmbeddedRedis(directory=Path(of_ray), tcp=True) as redis,
    ):
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "7" * 64,
            "RAY_TMPDIR": of_ray,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPO),
        }
        # reads the environment
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            seen = scenario(directory, Path(temporary), nodes, redis.url)
        finally:
            nodes.shutdown()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
