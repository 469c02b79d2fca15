"""Whether a cluster can use a Redis server that is not its own, found out before anything starts."""

from __future__ import annotations

import secrets

import redis
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from baleen import keyspace
from baleen.blocks import HASH_BYTES
from baleen.errors import BaleenError, ConfigError
from baleen.redis_config import RedisConfig
from workers.cache.announce import open_client

_CAUSES: dict[type[RedisError], str] = {
    MovedError: "it belongs to a Redis Cluster, must be one server",
    ReadOnlyError: "it is a replica, must be the primary",
    NoPermissionError: "its user may not do what docs/redis.md lists",
}


def check_redis(config: RedisConfig, cluster: str) -> None:
    """Read and write as ranks and routers will. Raises ConfigError or BaleenError that says what is in the way."""
    # may be wrong in a way that only shows here: a variable that is not set, a file that is not there
    config.credentials()
    with open_client(config) as client:
        try:
            _try_scripts(client, cluster)
        except AuthenticationError as error:
            raise ConfigError(f"redis {config.shown} refuses the user or password: {error}") from error
        except ResponseError as error:
            cause = next((text for kind, text in _CAUSES.items() if isinstance(error, kind)), None)
            if cause is None and "unknown command" in str(error).lower():
                cause = "it is no Redis server of version 6.2 or newer (a Sentinel?)"
            raise ConfigError(
                f"redis {config.shown} cannot be used: {cause or 'it refuses a script'}: {error}"
            ) from error
        except RedisError as error:
            raise BaleenError(f"redis {config.shown} cannot be reached: {error}") from error


def _try_scripts(client: redis.Redis, cluster: str) -> None:
    """A lease that is over before it begins is taken and cleaned away: nobody sees it."""
    prefix, tag = keyspace.key_prefix(cluster), secrets.token_bytes(keyspace.TAG_BYTES)
    keep_ms = round(keyspace.KEEP_S * 1000)
    for script, arguments in (
        (keyspace.LOOKUP, (bytes(HASH_BYTES),)),
        (keyspace.REGISTER, (tag, b"", b"check", b"{}", 0, keep_ms)),
        (keyspace.CLEAN, (keyspace.CLEAN_BLOCKS,)),
    ):
        client.eval(script.source, 1, prefix, *arguments)
