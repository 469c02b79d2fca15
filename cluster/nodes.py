"""What this machine has: processors, GPUs and memory, without Ray."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.placement import Node, Resources


def this_machine() -> Node:
    """This machine as the one node of a cluster."""
    return Node(
        node_id="this machine",
        address="127.0.0.1",
        free=Resources(float(len(os.sched_getaffinity(0))), float(_num_gpus()), float(_available_bytes())),
    )


def _num_gpus() -> int:
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _available_bytes() -> int:
    """Memory that new processes can have, the limit of a container included."""
    kilobytes = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvail")
    )
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        return min(kilobytes << 10, int(text) - int(used.read_text()))
    return kilobytes << 10
