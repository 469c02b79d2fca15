"""The router as a process of its own.

usage: python -m cluster.router_process --config FILE      FILE: a router.config.RouterProcessConfig as JSON
"""

from __future__ import annotations

import sys

from cluster import serving_process
from router.config import RouterProcessConfig, load_router_config
from router.main import Router


async def serve(config: RouterProcessConfig) -> None:
    """Serve until SIGTERM, SIGINT or the end of stdin, then drain."""
    await serving_process.serve(Router(config))


if __name__ == "__main__":
    sys.exit(serving_process.run("router", lambda path: Router(load_router_config(path))))
