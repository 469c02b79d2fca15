"""The gateway as a process of its own.

usage: python -m cluster.gateway_process --config FILE      FILE: a router.gateway.config.GatewayProcessConfig as JSON
"""

from __future__ import annotations

import sys

from cluster import serving_process
from router.gateway.config import load_gateway_config
from router.gateway.main import Gateway

if __name__ == "__main__":
    sys.exit(serving_process.run("gateway", lambda path: Gateway(load_gateway_config(path))))
