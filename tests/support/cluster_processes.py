"""A cluster of real processes without Ray: Redis, ranks and a router, started together and gone with the block."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baleen.config_file import to_dict
from baleen.telemetry import write_stderr
from baleen.tls_config import TlsConfig
from cluster.embedded import EmbeddedRedis
from tests.support.processes import REPO, Child, Nursery, nursery
from tests.support.transfer import NIXL_ENVIRONMENT

CLUSTER = "test"
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """One group of ranks. sections: of its ranks' configuration, beside those that follow from the rest."""

    name: str
    role: str
    ep: int = 1
    num_blocks: int = 64
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """What a test needs of it. ready: what each rank said when it was ready, group by group."""

    address: str
    redis_url: str
    ranks: dict[str, list[Child]]
    ready: dict[str, list[dict[str, Any]]]

    def preempted(self) -> list[str]:
        """Ids of the requests that lost their blocks so far, as the ranks know them."""
        lines = "".join(rank.errors() for ranks in self.ranks.values() for rank in ranks).splitlines()
        return [line.removeprefix("preempted ") for line in lines if line.startswith("preempted ")]


@contextmanager
def running_cluster(
    directory: Path, checkpoint: Path, groups: Sequence[GroupPlan], *, tls: TlsConfig | None = None, **router: Any
) -> Iterator[RunningCluster]:
    """Start everything and wait until the router listens. tls: of all. router: of its configuration."""
    inside = to_dict(tls or TlsConfig())
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedRedis())
        children = stack.enter_context(nursery(directory))
        ranks = {
            group.name: _start(children, stack, directory, checkpoint, group, redis.url, inside) for group in groups
        }
        ready = {name: [rank.event(START_TIMEOUT_S) for rank in group] for name, group in ranks.items()}
        config = {"listen": "127.0.0.1:0", "cluster": CLUSTER, "tls": inside, "redis": {"url": redis.url}, **router}
        yield RunningCluster(stack.enter_context(_router(directory, config)), redis.url, ranks, ready)


def _start(
    children: Nursery,
    stack: ExitStack,
    directory: Path,
    checkpoint: Path,
    group: GroupPlan,
    redis_url: str,
    tls: dict[str, Any],
) -> list[Child]:
    started = []
    for rank in range(group.ep):
        name = f"{group.name}-{rank}"
        config: dict[str, Any] = {
            "model": {"path": str(checkpoint), "num_threads": 1},
            "cache": {"num_blocks": group.num_blocks},
            "engine": {"audit": "step"},
            "tls": tls,
            "parallel": {
                "rank": rank,
                "world_size": group.ep,
                "rendezvous": f"file://{directory}/meet-{group.name}",
                "heartbeat_timeout_s": 20.0,
            },
            "serve": {
                "listen": "127.0.0.1:0",
                "metrics_listen": "127.0.0.1:0",
                "role": group.role,
                "pool": group.role,
                "group": group.name,
                "redis": {"url": redis_url},
                "cluster": CLUSTER,
            },
        }
        for section, values in group.sections.items():
            config.setdefault(section, {}).update(values)
        path = directory / f"{name}.json"
        path.write_text(json.dumps(config))
        pipe = directory / f"{name}.stdin"
        os.mkfifo(pipe)
        # open for both, so that neither end waits for the other; the rank's input ends when this process does
        stack.callback(os.close, os.open(pipe, os.O_RDWR))
        started.append(children.fork(name, _rank, str(path), str(pipe)))
    return started


def _rank(config: str, stdin: str) -> None:
    """The rank process, whose log tells of preemptions too."""
    os.environ.update(NIXL_ENVIRONMENT)
    from workers import main
    from workers.engine.request import Request
    from workers.engine.scheduler import Scheduler

    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    whole = Scheduler._preempt

    def preempt(scheduler: Scheduler, victim: Request) -> None:
        write_stderr(f"preempted {victim.id}\n")
        whole(scheduler, victim)

    Scheduler._preempt = preempt  # type: ignore[method-assign]
    main.main(["--config", config])


@contextmanager
def _router(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    path, errors = directory / "router.json", directory / "router.err"
    path.write_text(json.dumps(config))
    with (
        errors.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "cluster.router_process", "--config", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=REPO,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            address = process.stdout.readline().decode().strip() if readable else ""
            assert address, errors.read_text()[-3000:]
            yield address
        finally:
            process.kill()
