"""What the demo model can do, and that every way to run it computes the same: the table of the demo model's page.

usage: python -m benchmarks.demo_model [--run DIR] [--only NAME]...

Each row starts ranks, a router and a Redis of its own (no Ray), runs the held-out instances of `baleen eval demo`
through the router, and ends them. Tasks: one mixed rank. Perplexity of the held-out texts, each token asked for on its
own, cold and with all but the last tokens cached: one rank, a group of two that share the experts, prefill and decode
ranks, and caches in other formats. `recall, random index keys` needs --run, the folder of the training run: the same
parameters with random index keys.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baleen.demo import demo_checkpoint
from baleen.wire.channel import open_channel
from cluster.commands.eval import as_dict
from cluster.evaluation.instances import GRADED, TEXT, bundled_instances, read_instances
from cluster.evaluation.over_grpc import OverGrpc
from cluster.evaluation.runner import evaluate as run_instances
from tests.support.cluster_processes import GroupPlan, running_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A cluster, and what is asked of it. groups: role and ranks of each."""

    name: str
    groups: Sequence[tuple[str, int]] = (("mixed", 1),)
    families: Sequence[str] = (TEXT,)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    random_index_keys: bool = False


ROWS = (
    Row(name="tasks", families=GRADED),
    Row(name="recall, random index keys", families=("recall",), random_index_keys=True),
    Row(name="one rank"),
    Row(name="a group of two", groups=(("mixed", 2),)),
    Row(name="prefill 1, decode 1", groups=(("prefill", 1), ("decode", 1))),
    Row(name="prefill 2, decode 2", groups=(("prefill", 2), ("decode", 2))),
    Row(name="bfloat16 cache", sections={"cache": {"dtype": "bfloat16"}}),
    Row(name="float8 cache", sections={"cache": {"dtype": "float8"}}),
    Row(
        name="bfloat16 computing and cache",
        sections={"model": {"compute_dtype": "bfloat16"}, "cache": {"dtype": "bfloat16"}},
    ),
    Row(
        name="bfloat16 computing, float8 cache",
        sections={"model": {"compute_dtype": "bfloat16"}, "cache": {"dtype": "float8"}},
    ),
)


def measure(row: Row, checkpoint: Path) -> dict[str, Any]:
    """Run one row; what `baleen eval demo --json` would print."""
    instances = [instance for instance in read_instances(bundled_instances()) if instance.family in row.families]
    groups = [
        GroupPlan(name=f"{role}-{number}", role=role, ep=ep, num_blocks=256, sections=row.sections)
        for number, (role, ep) in enumerate(row.groups)
    ]

    async def evaluate(address: str) -> dict[str, Any]:
        async with open_channel(address) as channel:
            return as_dict(await run_instances(OverGrpc(channel, concurrency=8), instances))

    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        running_cluster(Path(directory), checkpoint, groups, model=str(checkpoint)) as cluster,
    ):
        return asyncio.run(evaluate(cluster.address))


def with_random_index_keys(run: Path, directory: Path) -> Path:
    """The checkpoint of a run whose indexer finds nothing."""
    # imports torch
    from examples.demo_model.export import export

    export(run / "state.pt", directory, random_index_keys=1)
    return directory


def main() -> int:
    """One line of JSON for each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, metavar="DIR", help="of the training, for random index keys")
    parser.add_argument("--checkpoint", type=Path, default=demo_checkpoint(), metavar="DIR")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS])
    options = parser.parse_args()
    for row in ROWS:
        if options.only and row.name not in options.only:
            continue
        if row.random_index_keys and options.run is None:
            continue
        with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
            directory = (
                with_random_index_keys(options.run, Path(scratch)) if row.random_index_keys else options.checkpoint
            )
            sys.stdout.write(json.dumps({"row": row.name, **measure(row, directory)}) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
