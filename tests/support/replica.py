"""A router's replica in a process of its own, as Serve would have it."""

from __future__ import annotations

import signal
import threading
from typing import Any

from baleen.config_file import from_dict
from cluster.serving_replica import RouterReplica
from router.config import RouterProcessConfig
from tests.support.processes import emit


def router_replica(config: dict[str, Any], replicas: int, log_directory: str, generation: int) -> None:
    """Emits address and process id of its router; SIGTERM tells it to go."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    replica = RouterReplica(from_dict(RouterProcessConfig, config), replicas, "default", log_directory, generation)
    assert replica._child is not None
    emit({"address": replica._child.address, "router": replica._child.pid})
    told.wait()
    del replica
