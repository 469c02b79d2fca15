"""What must stand in the environment before Ray is imported, since it reads its settings then. Imports no Ray."""

from __future__ import annotations

import os
import secrets
import sys

from baleen.cluster_config import RayConfig
from baleen.errors import ConfigError

HEAD_TIMEOUT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
HEAD_TIMEOUT_S = 7 * 86400
"""A process of Ray ends itself after so long without Ray's head, a minute by default, and ranks and routers with it."""

NICENESS_VARIABLE = "RAY_worker_niceness"
"""Ray gives its workers the priority 15, so that ranks and routers would get what everything else leaves them."""

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def prepare_environment(config: RayConfig) -> None:
    """Settle authentication, here and in all that is started from here; Ray's own default depends on files.

    Raises ConfigError where a cluster that runs already wants a token and none is given.
    """
    assert "ray" not in sys.modules, "too late: Ray has read its settings"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault(HEAD_TIMEOUT_VARIABLE, str(HEAD_TIMEOUT_S))
    os.environ.setdefault(NICENESS_VARIABLE, "0")
    os.environ["RAY_AUTH_MODE"] = config.auth
    if config.auth == "disabled" or any(os.environ.get(name) for name in TOKEN_VARIABLES):
        return
    if config.address:
        raise ConfigError(f"ray.auth is token, but neither {' nor '.join(TOKEN_VARIABLES)} is set for {config.address}")
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
