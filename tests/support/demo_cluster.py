"""The demo model behind a gateway: one rank, a router and a gateway, all real processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from baleen.demo import demo_checkpoint
from tests.support.small_cluster import SmallCluster, small_cluster


@contextlib.contextmanager
def demo_cluster(directory: Path) -> Iterator[tuple[SmallCluster, str]]:
    """The cluster and the URL of its gateway, for the block."""
    with (
        small_cluster(demo_checkpoint(), directory, roles=["mixed"], cache={"num_blocks": 128}) as cluster,
        cluster.gateway() as url,
    ):
        yield cluster, url
